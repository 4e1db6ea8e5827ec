"""Texts to learn from: plain files cut into documents, or jsonl with ``text``, ``messages`` or ``prompt``."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from potstill.errors import UserError

__all__ = ["Document", "read_documents"]

JSON_SUFFIXES = {".jsonl", ".ndjson"}
TABLES = {".json", ".csv", ".tsv", ".parquet", ".arrow"}
"""What holds texts, but among marks that nobody wants to learn."""


@dataclass(frozen=True)
class Document:
    """One text, or one conversation: nothing is learnt across the borders of documents.

    Attributes:
        where: File and line, for messages.
        text: The text, or what answers the prompt; empty for a conversation.
        messages: Turns with ``role`` and ``content``; empty for a text.
        prompt: What stands before the text and is not learnt; empty for none.
    """

    where: str
    text: str = ""
    messages: tuple[dict[str, str], ...] = ()
    prompt: str = ""

    @property
    def blank(self) -> bool:
        """Whether there is no visible character in it."""
        return not self.messages and not (self.prompt + self.text).strip()

    @property
    def asks(self) -> bool:
        """Whether it is a question whose answer is missing."""
        if self.messages:
            return self.messages[-1]["role"] == "user"
        return bool(self.prompt) and not self.text.strip()


def read_documents(path: Path, split_at: str | None, where: str) -> list[Document]:
    r"""The documents of a file.

    Args:
        path: A jsonl file with a ``text``, ``messages``, or a ``prompt`` with or without ``response`` in each
            line, or a plain text in UTF-8.
        split_at: Regular expression whose matches begin a new document of a plain text, ``^`` being the
            beginning of a line; ``None`` for one document.
        where: Dotted key for messages.

    Returns:
        Documents in the order of the file. What stands in a plain text before its first document is none
        where it is blank.

    Raises:
        UserError: If the file cannot be read, a line is no such object, or no document is left.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = Path(folder) / "book.txt"
    ...     _ = file.write_text("ONE\nOnce.\nTWO\nTwice.\n")
    ...     [document.text for document in read_documents(file, "^[A-Z]+$", "data.train")]
    ['ONE\nOnce.\n', 'TWO\nTwice.\n']
    """
    if path.suffix in TABLES:
        raise UserError(
            where, f"{path}: expected a plain text or .jsonl, got {path.suffix}; a jsonl line has 'text'"
        )
    try:
        content = path.read_text(encoding="utf-8-sig")  # a byte-order mark is no text
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(where, f"{path}: expected a text in UTF-8, cannot read it: {error}") from error
    if path.suffix in JSON_SUFFIXES:
        found = list(_lines(content, path, where))
    else:
        parts = [Document(str(path), text) for text in _parts(content, split_at, where)]
        found = [document for document in parts if not document.blank]
    if all(document.blank for document in found):
        raise UserError(where, f"{path}: expected documents, got none with any text")
    return found


def _parts(content: str, split_at: str | None, where: str) -> list[str]:
    if split_at is None:
        return [content]
    try:
        starts = [match.start() for match in re.finditer(split_at, content, re.MULTILINE)]
    except re.error as error:
        raise UserError(
            "data.split_at", f"expected a regular expression, got {split_at!r}: {error}"
        ) from error
    if not starts:
        raise UserError("data.split_at", f"{split_at!r} matches nowhere in {where}; no document begins there")
    edges = [0, *[start for start in starts if start], len(content)]
    return [content[begin:end] for begin, end in itertools.pairwise(edges)]


def _lines(content: str, path: Path, where: str) -> Iterator[Document]:
    for number, line in enumerate(content.split("\n"), start=1):
        if not line.strip():
            continue
        place = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UserError(where, f"{place}: not valid JSON: {error}") from error
        if isinstance(row, dict) and isinstance(row.get("text"), str):
            yield Document(place, row["text"])
        elif isinstance(row, dict) and "messages" in row:
            yield Document(place, messages=_turns(row["messages"], place, where))
        elif isinstance(row, dict) and isinstance(row.get("prompt"), str) and row["prompt"].strip():
            yield Document(place, _response(row.get("response"), place, where), prompt=row["prompt"])
        else:
            got = sorted(row) if isinstance(row, dict) else type(row).__name__
            raise UserError(
                where, f"{place}: expected an object with 'text', 'messages' or 'prompt', got {got}"
            )


def _response(response: Any, place: str, where: str) -> str:
    if response is None or isinstance(response, str):
        return response or ""
    raise UserError(where, f"{place}: expected a text as response, got {type(response).__name__}")


def _turns(messages: Any, place: str, where: str) -> tuple[dict[str, str], ...]:
    turns = messages if isinstance(messages, list) else []
    whole = all(
        isinstance(turn, dict) and isinstance(turn.get("role"), str) and isinstance(turn.get("content"), str)
        for turn in turns
    )
    if not turns or not whole:
        raise UserError(where, f"{place}: expected messages with a role and a content each, got {messages!r}")
    return tuple({"role": turn["role"], "content": turn["content"]} for turn in turns)
