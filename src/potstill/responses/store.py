"""Answers on disk: a line a prompt with a checksum of its own, so that what is torn is missing, never wrong.

settings.json        whose answers, and how they were asked for; written once, first
answers-RANK.jsonl   a line a prompt, appended as it is answered
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from potstill import distributed
from potstill.cache.identity import Identity
from potstill.errors import UserError
from potstill.files import read_json, write_once

__all__ = ["Answer", "ResponseStore"]

WHERE = "teacher.responses.path"


@dataclass(frozen=True)
class Answer:
    """One answer.

    Attributes:
        text: What was answered.
        ids: Its tokens, where they are known: the teacher's own tokenizer made them.
        likelihood: Mean log-probability of its tokens for the teacher, in nats; ``None`` where unknown.
        top: For each of its tokens, the likeliest tokens there with their log-probabilities; where kept.
    """

    text: str
    ids: tuple[int, ...] = ()
    likelihood: float | None = None
    top: tuple[dict[str, float], ...] = ()


class ResponseStore:
    """The answers of one teacher, asked in one way.

    Args:
        folder: Where they lie; made when there is something to keep.
        facts: Whose answers, and how they are asked for; an existing store must have the same.

    Raises:
        UserError: If the folder holds answers of another teacher or to other settings.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     store = ResponseStore(Path(folder) / "answers", {"teacher": "me"})
    ...     store.append({"a1": [Answer("yes", (1, 2), -0.5)]})
    ...     ResponseStore(Path(folder) / "answers", {"teacher": "me"}).read()["a1"][0].text
    'yes'
    """

    def __init__(self, folder: Path, facts: Mapping[str, str]) -> None:
        self.folder, self.identity = folder, Identity(facts)
        settings = folder / "settings.json"
        if settings.is_file():
            self.identity.refuse_other(Identity(read_json(settings)), str(folder), WHERE)

    def read(self) -> dict[str, list[Answer]]:
        """All whole answers by the keys of their prompts."""
        found: dict[str, list[Answer]] = {}
        for path in sorted(self.folder.glob("answers-*.jsonl")):
            for row in _whole_lines(path):
                found[row["key"]] = [_answer(each) for each in row["answers"]]
        return found

    def append(self, answers: Mapping[str, Iterable[Answer]]) -> None:
        """Keep the answers to some prompts, on the disk when this returns.

        Raises:
            UserError: If they cannot be written.
        """
        facts = json.dumps(dict(self.identity.facts), indent=2, sort_keys=True).encode()
        if not (self.folder / "settings.json").is_file():
            write_once(self.folder / "settings.json", facts)
        path = self.folder / f"answers-{distributed.rank()}.jsonl"
        lines = b"".join(
            _line({"key": key, "answers": [asdict(each) for each in some]}) for key, some in answers.items()
        )
        try:
            with path.open("ab") as stream:
                if stream.tell() and not _ends_whole(path):
                    lines = b"\n" + lines
                stream.write(lines)
                stream.flush()
                os.fsync(stream.fileno())
        except OSError as error:
            raise UserError(str(path), f"cannot write answers: {error.strerror or error}") from error


def _answer(row: Mapping[str, Any]) -> Answer:
    return Answer(row["text"], tuple(row["ids"]), row["likelihood"], tuple(row["top"]))


def _line(row: Mapping[str, Any]) -> bytes:
    text = json.dumps(row, ensure_ascii=False).encode()
    return f"{zlib.crc32(text):08x} ".encode() + text + b"\n"


def _ends_whole(path: Path) -> bool:
    with path.open("rb") as stream:
        stream.seek(-1, os.SEEK_END)
        return stream.read(1) == b"\n"


def _whole_lines(path: Path) -> Iterator[dict[str, Any]]:
    for line in path.read_bytes().split(b"\n"):
        checksum, _, text = line.partition(b" ")
        if text and checksum == f"{zlib.crc32(text):08x}".encode():
            yield json.loads(text)
