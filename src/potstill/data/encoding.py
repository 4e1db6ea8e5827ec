"""From documents to token ids, and which of them a model learns to write."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from potstill.data.documents import Document
from potstill.errors import UserError

__all__ = ["Encoded", "encode", "rendered"]

GENERATION = "{% generation"
"""What a chat template holds that marks the assistant's tokens itself."""


@dataclass(frozen=True)
class Encoded:
    """A document as tokens.

    Attributes:
        ids: Token ids.
        learnt: Whether the model learns to write each token; in a conversation the assistant's alone.
    """

    ids: Sequence[int]
    learnt: Sequence[bool]


def encode(tokenizer: Any, documents: Sequence[Document]) -> list[Encoded]:
    """The tokens of documents.

    A text is followed by the tokenizer's end token, where it has one, and learnt whole, but for a prompt
    before it. A conversation goes
    through the tokenizer's own chat template; learnt is what the assistant writes, its end token included,
    and not what the template puts before or after it.

    Args:
        tokenizer: A fast tokenizer of transformers.
        documents: Texts and conversations.

    Raises:
        UserError: If a conversation has no turn of the assistant, a prompt no response, the tokenizer no chat
            template, it refuses a conversation, or it changes earlier turns when later ones follow and does
            not mark the assistant's tokens itself.
    """
    texts = [document.text for document in documents if not document.messages and not document.prompt]
    plain = iter(tokenizer(texts, verbose=False)["input_ids"] if texts else [])
    end = tokenizer.eos_token_id
    found = []
    for document in documents:
        if document.messages:
            found.append(_conversation(tokenizer, document))
            continue
        if document.prompt:
            found.append(_answered(tokenizer, document))
            continue
        ids = list(next(plain))
        ids += [end] if end is not None and ids[-1:] != [end] else []
        found.append(Encoded(ids, [True] * len(ids)))
    return found


def _answered(tokenizer: Any, document: Document) -> Encoded:
    """A prompt and what answers it, which alone is learnt."""
    if document.asks:
        raise UserError(
            "data",
            f"{document.where}: a prompt without a response; teacher.responses lets the teacher answer",
        )
    prompt = tokenizer(document.prompt, verbose=False)["input_ids"]
    ids = tokenizer(document.text, verbose=False, add_special_tokens=False)["input_ids"]
    ids = [*ids, tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else ids
    return Encoded([*prompt, *ids], [False] * len(prompt) + [True] * len(ids))


def _conversation(tokenizer: Any, document: Document) -> Encoded:
    messages = list(document.messages)
    if not any(turn["role"] == "assistant" for turn in messages):
        raise UserError(
            "data",
            f"{document.where}: no turn of the assistant, so there is nothing to learn; teacher.responses "
            "lets the teacher answer",
        )
    if not tokenizer.chat_template:
        raise UserError(
            "data", f"{document.where}: messages need a chat template, and the tokenizer has none"
        )
    if GENERATION in tokenizer.chat_template.replace("{%-", "{%"):
        marked = {"return_dict": True, "return_assistant_tokens_mask": True}
        made = _templated(tokenizer, messages, document.where, tokenize=True, **marked)
        return Encoded(made["input_ids"], [bool(each) for each in made["assistant_masks"]])
    whole = rendered(tokenizer, messages, document.where)
    spans = [
        _span(tokenizer, messages, place, whole, document)
        for place, turn in enumerate(messages)
        if turn["role"] == "assistant"
    ]
    made = tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    learnt = [
        any(begin <= first and last <= end and first < last for begin, end in spans)
        for first, last in made["offset_mapping"]
    ]
    return Encoded(made["input_ids"], learnt)


def rendered(tokenizer: Any, messages: Sequence[Mapping[str, str]], where: str, *, ask: bool = False) -> str:
    """A conversation as the tokenizer's template writes it; ``ask`` adds the head of the assistant's turn.

    Raises:
        UserError: If the template refuses it; ``where`` is the document.
    """
    text: str = _templated(tokenizer, messages, where, tokenize=False, add_generation_prompt=ask)
    return text


def _templated(tokenizer: Any, messages: Sequence[Mapping[str, str]], where: str, **options: Any) -> Any:
    from jinja2 import TemplateError

    try:
        return tokenizer.apply_chat_template(list(messages), **options)
    except (TemplateError, ValueError, TypeError) as error:
        raise UserError("data", f"{where}: the chat template refuses the conversation: {error}") from error


def _span(
    tokenizer: Any, messages: Sequence[Mapping[str, str]], place: int, whole: str, document: Document
) -> tuple[int, int]:
    """Where in the text the assistant's turn stands: after its header, up to its end token."""
    if place == 0:
        raise UserError(
            "data",
            f"{document.where}: the assistant speaks first, so nothing tells its words from the chat "
            "template's; begin with another turn, or a template with {% generation %}",
        )
    before = rendered(tokenizer, messages[:place], document.where, ask=True)
    after = rendered(tokenizer, messages[: place + 1], document.where)
    if not (after.startswith(before) and whole.startswith(after)):
        raise UserError(
            "data",
            f"{document.where}: the chat template writes earlier turns otherwise when later ones follow, and "
            "does not mark the assistant's with {% generation %}; give such conversations turn by turn",
        )
    return len(before), len(after.rstrip())
