"""What is asked before an answer: the prompt of a document."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from potstill.data.documents import Document
from potstill.data.encoding import rendered

__all__ = ["Prompt", "answered", "as_if_answered", "prompt_of"]


@dataclass(frozen=True)
class Prompt:
    """A prompt.

    Attributes:
        key: Sixteen hexadecimal digits of what is asked; the same prompt twice is asked once.
        ids: Its tokens.
        text: The same as a text, the template of a conversation included.
        messages: The turns of a conversation; empty for a text.
    """

    key: str
    ids: tuple[int, ...]
    text: str
    messages: tuple[dict[str, str], ...] = ()


def prompt_of(tokenizer: Any, document: Document, tokens: int) -> Prompt | None:
    """What stands before a document's answer.

    Of a conversation that is all before the assistant's last turn; of a text without a prompt its first
    tokens.

    Args:
        tokenizer: Cuts it into tokens; a conversation needs its chat template.
        document: The document.
        tokens: How many of a text without a prompt.

    Returns:
        The prompt; ``None`` where a text is no longer than it, or a conversation has no template.

    Raises:
        UserError: If the template refuses the conversation.
    """
    if document.messages:
        turns = list(document.messages)
        last = max((at for at, turn in enumerate(turns) if turn["role"] == "assistant"), default=len(turns))
        turns = turns if document.asks else turns[:last]
        if not tokenizer.chat_template or not turns:
            return None
        text = rendered(tokenizer, turns, document.where, ask=True)
        ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return _prompt(ids, text, tuple(turns))
    ids = tokenizer(document.prompt or document.text, verbose=False)["input_ids"]
    if document.prompt:
        return _prompt(ids, document.prompt)
    if len(ids) <= tokens:
        return None
    return _prompt(ids[:tokens], tokenizer.decode(ids[:tokens]))


def _prompt(ids: Sequence[int], text: str, messages: tuple[dict[str, str], ...] = ()) -> Prompt:
    key = hashlib.sha256(json.dumps([list(ids), text, messages]).encode()).hexdigest()[:16]
    return Prompt(key, tuple(ids), text, messages)


def answered(document: Document, prompt: Prompt, text: str) -> Document:
    """The document with another answer to its prompt.

    >>> answered(Document("a", "It was late."), Prompt("0", (1, 2), "It was"), " early.")
    Document(where='a', text=' early.', messages=(), prompt='It was')
    """
    if prompt.messages:
        turn = {"role": "assistant", "content": text}
        return replace(document, messages=(*prompt.messages, turn))
    return replace(document, text=text, prompt=prompt.text)


def as_if_answered(document: Document) -> Document:
    """A document whose answer is missing with its own question in that place, to have something to load.

    >>> as_if_answered(Document("a", prompt="Why?")).text
    'Why?'
    """
    if not document.asks:
        return document
    if document.messages:
        turn = {"role": "assistant", "content": document.messages[-1]["content"]}
        return replace(document, messages=(*document.messages, turn))
    return replace(document, text=document.prompt)
