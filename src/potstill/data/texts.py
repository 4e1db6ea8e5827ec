"""Labelled texts: json lines, CSV files and Hugging Face data sets, read whole."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from potstill.data.dataset import LabelledSet, Rows, check_labels
from potstill.data.hub import SPELLED, load_splits
from potstill.errors import UserError, nearest

__all__ = ["TextSet", "load_texts"]

TEXT_COLUMNS = ("text", "sentence", "content", "question", "review")
LABEL_COLUMNS = ("label", "labels", "class", "target", "category")
SUFFIXES = {"jsonl": ".jsonl", "csv": ".csv"}
FILES = {**SPELLED, "dev": "validation"}

Table = Mapping[str, Sequence[Any]]
"""A part of the data, column by column."""


class TextSet(LabelledSet):
    """Texts with labels.

    Args:
        texts: The texts.
        labels: A label each.
        class_names: Names in the order of the labels.
        where: What messages call it.

    Raises:
        UserError: If a text is empty, or a label is none of the classes.

    >>> texts = TextSet(["good", "not so good"], [1, 0], ("no", "yes"), "example")
    >>> texts.__getitems__([1]), texts.lengths.tolist()
    ((['not so good'], tensor([0]), tensor([1])), [4, 11])
    """

    def __init__(
        self, texts: Sequence[str], labels: Sequence[int], class_names: Sequence[str], where: str
    ) -> None:
        self.texts = list(texts)
        self.labels = torch.tensor(list(labels), dtype=torch.int64)
        self.class_names = tuple(class_names)
        check_labels(self.labels, self.class_names, where)
        for position, text in enumerate(self.texts):
            if not text.strip():
                raise UserError(where, f"expected texts, got an empty one at position {position}")
        self._lengths = np.array([len(text) for text in self.texts], dtype=np.int64)

    def __getitems__(self, indices: Sequence[int]) -> Rows:
        """Texts, labels ``(n,)`` and positions ``(n,)`` of a batch."""
        index = torch.as_tensor(indices, dtype=torch.int64)
        return [self.texts[position] for position in indices], self.labels[index], index

    @property
    def in_memory(self) -> bool:
        """Texts need no decoding."""
        return True

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Characters of each text, ``(N,)``."""
        return self._lengths

    def typical(self) -> int:
        """Position of a text of median length."""
        return int(np.argsort(self._lengths, kind="stable")[len(self) // 2])

    def subset(self, indices: Sequence[int]) -> TextSet:
        """The texts at ``indices``, renumbered from 0."""
        texts, labels, _ = self.__getitems__(indices)
        return TextSet(texts, labels.tolist(), self.class_names, "subset")


def load_texts(
    kind: str, source: str, columns: tuple[str | None, str | None], arguments: Mapping[str, Any]
) -> dict[str, TextSet]:
    """The parts of a data set of texts.

    Args:
        kind: ``jsonl`` or ``csv``: a file, or a folder of ``train``, ``validation`` (or ``dev``) and ``test``
            files; ``huggingface``: whatever the ``datasets`` library reads.
        source: The file or folder; of ``huggingface`` also a name on the hub.
        columns: Text and label column; ``None`` takes one with a usual name.
        arguments: Passed on to ``load_dataset``.

    Returns:
        ``train`` and, where they are there, ``validation`` and ``test``. Labels may be numbers from 0 or
        words; words are sorted.

    Raises:
        UserError: If a file is missing or damaged, a column cannot be told, a text is empty, or a label is
            not among the training part's.
    """
    path = Path(source)
    if kind == "huggingface":
        splits = load_splits(source, arguments)
        tables: dict[str, Table] = {
            FILES[name]: {column: split[column] for column in split.features}
            for name, split in splits.items()
            if name in FILES
        }
        names = {
            column: found
            for column, feature in splits["train"].features.items()
            if (found := getattr(feature, "names", None))
        }
    else:
        tables, names = {part: _read(file, kind) for part, file in _files(path, kind).items()}, {}
    return _sets(tables, columns, names, path)


def _files(path: Path, kind: str) -> dict[str, Path]:
    if path.is_file():
        return {"train": path}
    found = {}
    for file in sorted(path.glob(f"*{SUFFIXES[kind]}")):
        if file.stem in FILES:
            found[FILES[file.stem]] = file
    if "train" not in found:
        raise UserError(
            "data.path", f"{path}: expected a file train{SUFFIXES[kind]}, got {sorted(found.values())}"
        )
    return found


def _read(file: Path, kind: str) -> Table:
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:  # Excel writes a byte-order mark
            rows = list(_json_rows(stream, file) if kind == "jsonl" else _csv_rows(stream, file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError("data.path", f"cannot read {file}: {error}") from error
    if not rows:
        raise UserError("data.path", f"expected samples, got the empty file {file}")
    columns = list(rows[0])
    for number, row in enumerate(rows, start=1):
        missing = [column for column in columns if row.get(column) is None]
        if missing:
            raise UserError("data.path", f"{file}: sample {number} has no {missing[0]!r}")
    return {column: [row[column] for row in rows] for column in columns}


def _csv_rows(stream: Iterable[str], file: Path) -> Iterator[dict[str, Any]]:
    reader = csv.DictReader(stream)
    columns = list(reader.fieldnames or ())
    if len(set(columns)) < len(columns):
        raise UserError("data.path", f"{file}: expected columns of different names, got {', '.join(columns)}")
    for number, row in enumerate(reader, start=1):
        if None in row:
            raise UserError(
                "data.path",
                f"{file}: sample {number} has more than the {len(columns)} columns; a text with commas "
                "needs quotes",
            )
        yield row


def _json_rows(stream: Iterable[str], file: Path) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(stream, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UserError(
                "data.path", f"{file}, line {number}: expected JSON, cannot read it: {error}"
            ) from error
        if not isinstance(row, dict):
            raise UserError(
                "data.path", f"{file}, line {number}: expected an object, got {type(row).__name__}"
            )
        yield row


def _sets(
    tables: Mapping[str, Table],
    columns: tuple[str | None, str | None],
    named: Mapping[str, Sequence[str]],
    path: Path,
) -> dict[str, TextSet]:
    """Every part by the columns and the classes of the training part."""
    first = tables["train"]
    text = _column(first, columns[0], TEXT_COLUMNS, "data.text_column")
    label = _column(first, columns[1], LABEL_COLUMNS, "data.label_column")
    names = named.get(label) or _class_names(first[label], path)
    found = {}
    for part, table in tables.items():
        for column in (text, label):
            if column not in table:
                raise UserError(
                    f"data: {part}", f"{path}: has no column {column!r}, which the training part has"
                )
        labels = [_label(value, names, part) for value in table[label]]
        where = f"data.path: {path}: {part}"
        found[part] = TextSet([_text(*each, where) for each in enumerate(table[text])], labels, names, where)
    return found


def _text(position: int, value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise UserError(where, f"expected texts, got {type(value).__name__} at position {position}")
    return value


def _column(table: Table, wanted: str | None, usual: Sequence[str], where: str) -> str:
    if wanted is not None:
        if wanted not in table:
            raise UserError(where, f"no column {wanted!r}{nearest(wanted, list(table))}")
        return wanted
    found = next((name for name in usual if name in table), None)
    if found is None:
        raise UserError(where, f"cannot tell the column; the data has {', '.join(table)}")
    return found


def _number(value: Any) -> int | None:
    """The number that a label is, also as text, ``None`` for a word."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    return int(value) if isinstance(value, str) and value.strip().isdigit() else None


def _class_names(values: Sequence[Any], path: Path) -> tuple[str, ...]:
    words = sorted({_word(value) for value in values})
    numbers = [number for value in values if (number := _number(value)) is not None]
    numbered = len(numbers) == len(values)
    count = max(numbers) + 1 if numbered else len(words)
    if count >= len(values) > 2:
        raise UserError(
            "data.label_column",
            f"{path}: expected several samples a class, got {count:,} classes for {len(values):,} samples; "
            "name the column of the classes, whose numbers begin at 0",
        )
    return tuple(map(str, range(count))) if numbered else tuple(words)


def _word(value: Any) -> str:
    """A label as a word; spaces around it say nothing."""
    if not isinstance(value, str | int | float):
        raise UserError("data.label_column", f"expected words or numbers, got {type(value).__name__}")
    return str(value).strip()


def _label(value: Any, names: Sequence[str], part: str) -> int:
    number = _number(value)
    numbered = isinstance(value, int) or all(_number(name) == place for place, name in enumerate(names))
    if numbered and number is not None and 0 <= number < len(names):
        return number
    if _word(value) in names:
        return list(names).index(_word(value))
    if number is not None and number < 0:
        raise UserError(
            "data.label_column",
            f"expected classes from 0, got {number} in the {part} part; hubs mark samples without a label so",
        )
    raise UserError(
        "data.label_column", f"the class {value!r} of the {part} part is not in the training part"
    )
