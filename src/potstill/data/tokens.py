"""Texts as a part of a run: packed rows of tokens, and where each document's losses go."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from potstill.data.dataset import SampleSet
from potstill.data.documents import Document, read_documents
from potstill.data.encoding import Encoded, encode
from potstill.data.load import Splits
from potstill.data.packing import Packed, pack
from potstill.errors import UserError
from potstill.losses import Range
from potstill.specs import find

__all__ = ["IGNORED", "TextConfig", "TokenSet", "read_texts", "token_rows", "token_splits"]

IGNORED = -100
"""The target where no prediction is learnt or measured."""


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """What a language model learns from and is measured on."""

    path: str | None = None
    """A folder with ``train``, ``valid`` and ``test`` as ``.txt`` or ``.jsonl``, or one such file."""
    files: dict[str, str] = field(default_factory=dict)
    """Names of the files of ``train``, ``validation`` and ``test`` in the folder, where they have others."""
    split_at: str | None = None
    """Regular expression that begins a document of a plain text, ``^`` being the beginning of a line."""
    max_length: Annotated[int, Range(least=2)] = 512
    """Tokens in a row; longer documents are cut into several pieces."""
    packing: bool = True
    """Lay several documents into one row, none of which sees its neighbours."""
    tokenizer: str | None = None
    """A folder, a name on the hub, or ``characters``; the teacher's own by default."""
    limit: Annotated[int, Range(least=1)] | None = None
    """Train on this many rows only; both arms see the same."""
    measure_tokens: Annotated[int, Range(least=2)] | None = None
    """Measure on so many tokens of each document, from its beginning; on all by default."""
    validation: Annotated[float, Range(above=0)] = 0.1
    """What to cut from the training documents for a part that has no file: a share, or a number."""
    workers: Annotated[int, Range(least=0, most=0)] = 0
    """Tokens are in memory; nothing is read by other processes."""


class TokenSet(SampleSet):
    """Rows of tokens.

    Args:
        packed: The rows.
        beside_teacher: Whether predictions on it are compared with the teacher's.
        together: Whether a row may hold several documents.

    Attributes:
        packed: The rows.
        documents: Number of documents of which tokens are counted.
        tokens: Number of predictions that count.
    """

    def __init__(self, packed: Packed, *, beside_teacher: bool = False, together: bool = True) -> None:
        self.packed = packed
        self.beside_teacher, self.together = beside_teacher, together
        self.tokens = int(packed.counted.sum())
        self.documents = len(np.unique(packed.documents[packed.counted]))

    def __len__(self) -> int:
        return len(self.packed.tokens)

    def __getitems__(self, indices: Sequence[int]) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """A batch: ``input_ids`` and ``position_ids`` ``(n, L)``, next tokens ``(n, L)``, places ``(n,)``."""
        rows = np.asarray(indices, dtype=np.int64)
        tokens = torch.from_numpy(self.packed.tokens[rows].astype(np.int64))
        places = torch.from_numpy(self.packed.positions[rows].astype(np.int64))
        counted = torch.from_numpy(self.packed.counted[rows])
        following = torch.roll(tokens, -1, dims=1).masked_fill(~counted, IGNORED)
        return {"input_ids": tokens, "position_ids": places}, following, torch.from_numpy(rows)

    @property
    def in_memory(self) -> bool:
        """Tokens need no decoding."""
        return True

    @property
    def length(self) -> int:
        """Tokens in a row."""
        return int(self.packed.tokens.shape[1])

    @property
    def targets(self) -> NDArray[np.int32]:
        """The token that follows each, ``(R, L)``; what stands at a row's end is not counted."""
        following: NDArray[np.int32] = np.roll(self.packed.tokens, -1, axis=1)
        return following

    def subset(self, indices: Sequence[int]) -> TokenSet:
        """The rows at ``indices``, renumbered from 0."""
        rows = np.asarray(indices, dtype=np.int64)
        packed = replace(
            self.packed,
            **{
                name: getattr(self.packed, name)[rows]
                for name in ("tokens", "positions", "documents", "counted")
            },
        )
        return TokenSet(packed, beside_teacher=self.beside_teacher, together=self.together)


@dataclass(frozen=True)
class Texts:
    """The documents of the three parts, not yet cut into tokens.

    Attributes:
        parts: Documents of ``train``, ``validation`` and ``test``.
        notes: What a reader should know of how they came about.
    """

    parts: Mapping[str, Sequence[Document]]
    notes: list[str] = field(default_factory=list)

    @property
    def all_text(self) -> str:
        """Every character that occurs in the training part."""
        return "".join(document.text for document in self.parts["train"])


SPELLINGS = {"train": ("train",), "validation": ("validation", "valid", "val", "dev"), "test": ("test",)}


def read_texts(config: TextConfig, search: Sequence[Path], seed: int) -> Texts:
    """Read the documents of a recipe; parts without a file are cut from the training documents.

    Args:
        config: The recipe's ``data`` section.
        search: Folders in which the path is looked up.
        seed: Of the cuts.

    Raises:
        UserError: At the dotted key of what is missing or cannot be read.
    """
    if config.path is None:
        raise UserError("data.path", "missing; a language model needs a text file or a folder of them")
    for name in config.files:
        if name not in SPELLINGS:
            raise UserError(f"data.files.{name}", f"expected one of {', '.join(SPELLINGS)}")
    place = find(config.path, search, "data.path")
    files = _files(place, config) if place.is_dir() else {"train": place}
    if "train" not in files:
        raise UserError("data.files.train", f"missing; {place} has no train.txt or train.jsonl")
    parts: dict[str, Sequence[Document]] = {
        part: read_documents(file, config.split_at, f"data.{part}") for part, file in files.items()
    }
    notes = [note for part in parts for note in _without_blanks(parts, part)]
    for number, part in enumerate(("test", "validation")):
        if part not in parts:
            documents = parts["train"]
            share = config.validation if config.validation >= 1 else config.validation * len(documents)
            count = max(round(share), 2)
            if len(documents) < count + 1:
                raise UserError(
                    f"data.{part}",
                    f"missing, and the training part has {len(documents)} document(s), too few to cut some "
                    "off; name a file, or say with data.split_at where documents begin",
                )
            order = np.random.default_rng([seed, number]).permutation(len(documents))
            parts[part] = [documents[place] for place in sorted(order[:count])]
            parts["train"] = [documents[place] for place in sorted(order[count:])]
            notes.append(f"{count} of {len(documents)} training documents were cut off for {part}")
    return Texts(parts, notes)


def _without_blanks(parts: dict[str, Sequence[Document]], part: str) -> Iterator[str]:
    """Leave out a part's documents without any text; what to say of them."""
    blank = [document for document in parts[part] if document.blank]
    parts[part] = [document for document in parts[part] if not document.blank]
    if blank:
        where = blank[0].where
        yield f"{len(blank)} documents of {part} have no text, the first at {where}; they are left out"


def _files(folder: Path, config: TextConfig) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for part, spellings in SPELLINGS.items():
        if part in config.files:
            found[part] = find(config.files[part], [folder], f"data.files.{part}")
            continue
        names = [f"{spelling}{suffix}" for spelling in spellings for suffix in (".jsonl", ".txt")]
        there = [folder / name for name in names if (folder / name).is_file()]
        there = [file for file in there if file not in found.values()]  # valid.txt may be what is trained on
        if there:
            found[part] = there[0]
    return found


def token_splits(texts: Texts, tokenizer: Any, config: TextConfig, *, together: bool) -> Splits[TokenSet]:
    """Cut the documents of all parts into tokens and lay them into rows.

    Args:
        texts: The documents.
        tokenizer: The student's tokenizer.
        config: The recipe's ``data`` section.
        together: Whether the models can have several documents in a row.

    Raises:
        UserError: If nothing is left to learn, or the test part has fewer than two documents.
    """
    notes, made = list(texts.notes), {}
    for part, documents in texts.parts.items():
        encoded, places = encode(tokenizer, documents), [document.where for document in documents]
        made[part], told = token_rows(encoded, places, part, tokenizer, config, together=together)
        notes += told
    if made["test"].documents < 2:
        raise UserError("data.test", "expected at least 2 documents for an interval; set data.split_at")
    return Splits(made["train"], made["validation"], made["test"], notes)


def token_rows(
    encoded: Sequence[Encoded],
    places: Sequence[str],
    part: str,
    tokenizer: Any,
    config: TextConfig,
    *,
    together: bool,
) -> tuple[TokenSet, list[str]]:
    """Lay one part's documents into rows.

    Args:
        encoded: Tokens by document.
        places: Where each document stands, for messages.
        part: ``train``, ``validation`` or ``test``.
        tokenizer: The student's tokenizer.
        config: The recipe's ``data`` section.
        together: Whether the models can have several documents in a row.

    Returns:
        The rows, and what a reader should know of them.

    Raises:
        UserError: If nothing is left to learn.
    """
    padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id or 0
    notes, limit = [], f"data.max_length ({config.max_length} tokens"
    if part != "train" and config.measure_tokens is not None:
        encoded, note = _beginnings(encoded, config.measure_tokens, part)
        notes.append(note)
        if config.measure_tokens < config.max_length:
            limit = f"data.measure_tokens ({config.measure_tokens} tokens"
    packed = pack(encoded, config.max_length, padding=padding, together=together and config.packing)
    if packed.dropped:
        notes.append(
            f"{len(packed.dropped)} of {len(encoded)} documents of {part} have nothing to learn within "
            f"{limit}; prompts longer than that, or a single token), "
            f"the first at {places[packed.dropped[0]]}"
        )
    if not packed.counted.any():
        raise UserError(f"data.{part}", f"nothing is left to learn: {notes[-1] if packed.dropped else ''}")
    rows = TokenSet(packed, beside_teacher=part == "test", together=together)
    if part == "train" and config.limit is not None and config.limit < len(rows):
        order = np.random.default_rng(0).permutation(len(rows))[: config.limit]
        notes.append(f"only {config.limit} of {len(rows)} training rows are used (data.limit)")
        rows = rows.subset(sorted(order.tolist()))
    return rows, notes


def _beginnings(documents: Sequence[Encoded], most: int, part: str) -> tuple[list[Encoded], str]:
    cut = [Encoded(each.ids[:most], each.learnt[:most]) for each in documents]
    kept, whole = (sum(len(each.ids) for each in some) for some in (cut, documents))
    return cut, (
        f"{part} reads the first {most} tokens of each document: {kept:,} of {whole:,} ({kept / whole:.0%})"
    )
