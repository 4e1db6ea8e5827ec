"""Rows of tokens of one length: documents side by side, none of which sees its neighbours."""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from potstill.data.encoding import Encoded

__all__ = ["Packed", "pack"]

PADDING = -1
"""The document of what only fills a row."""


@dataclass(frozen=True)
class Packed:
    """Rows ``(R, L)`` of tokens.

    Attributes:
        tokens: Token ids, int32.
        positions: Place of each token in its piece, from 0, int32: where it does not go on by one, another
            piece begins, and attention ends.
        documents: Which document each token is of, int32; -1 for padding.
        counted: Whether the prediction made *at* each token, of the token after it, is learnt and measured.
        dropped: Documents of which nothing is left to learn within the length.
    """

    tokens: NDArray[np.int32]
    positions: NDArray[np.int32]
    documents: NDArray[np.int32]
    counted: NDArray[np.bool_]
    dropped: tuple[int, ...] = ()


@dataclass(frozen=True)
class _Piece:
    document: int
    ids: Sequence[int]
    learnt: Sequence[bool]


def pack(documents: Sequence[Encoded], length: int, *, padding: int, together: bool = True) -> Packed:
    """Lay documents into rows of ``length`` tokens.

    A document longer than a row goes into several pieces that overlap by one token, so that every token but
    the document's first is predicted exactly once. A document of which not all is learnt, a conversation, is
    cut at the end instead: what follows would lack the question. The longest pieces are placed first, each
    into the fullest row that has room.

    Args:
        documents: Tokens by document.
        length: Tokens in a row, at least 2.
        padding: Token id that fills what is left of a row.
        together: Put several pieces into one row; else each has its own.

    Returns:
        The rows. Padding is a piece of its own at a row's end.

    >>> packed = pack([Encoded([5, 6, 7], [True] * 3), Encoded([8, 9], [True] * 2)], 6, padding=0)
    >>> packed.tokens.tolist(), packed.positions.tolist()
    ([[5, 6, 7, 8, 9, 0]], [[0, 1, 2, 0, 1, 0]])
    >>> packed.counted.tolist()
    [[True, True, False, True, False, False]]
    """
    if length < 2:
        raise ValueError(f"length: expected at least 2 tokens in a row, got {length}")
    pieces, dropped = [], []
    for number, document in enumerate(documents):
        made = [piece for piece in _pieces(number, document, length) if any(piece.learnt[1:])]
        pieces += made
        if not made:
            dropped.append(number)
    rows = _placed(pieces, length) if together else [[piece] for piece in pieces]
    shape = (len(rows), length)
    tokens = np.full(shape, padding, dtype=np.int32)
    positions = np.zeros(shape, dtype=np.int32)
    owners = np.full(shape, PADDING, dtype=np.int32)
    counted = np.zeros(shape, dtype=np.bool_)
    for row, content in enumerate(rows):
        at = 0
        for piece in content:
            end = at + len(piece.ids)
            tokens[row, at:end] = piece.ids
            positions[row, at:end] = np.arange(len(piece.ids))
            owners[row, at:end] = piece.document
            counted[row, at : end - 1] = piece.learnt[1:]
            at = end
        positions[row, at:] = np.arange(length - at)
    return Packed(tokens, positions, owners, counted, tuple(dropped))


def _pieces(number: int, document: Encoded, length: int) -> Iterator[_Piece]:
    if not all(document.learnt):
        yield _Piece(number, document.ids[:length], document.learnt[:length])
        return
    for begin in range(0, max(len(document.ids) - 1, 0), length - 1):
        end = begin + length
        yield _Piece(number, document.ids[begin:end], document.learnt[begin:end])


def _placed(pieces: Sequence[_Piece], length: int) -> list[list[_Piece]]:
    """Best fit, longest first; equal lengths keep their order."""
    rows: list[list[_Piece]] = []
    room: list[tuple[int, int]] = []  # free tokens and number of each row that is not full, sorted
    for piece in sorted(pieces, key=lambda each: -len(each.ids)):
        found = bisect.bisect_left(room, (len(piece.ids), 0))
        if found < len(room):
            free, row = room.pop(found)
        else:
            free, row = length, len(rows)
            rows.append([])
        rows[row].append(piece)
        if free > len(piece.ids):
            bisect.insort(room, (free - len(piece.ids), row))
    return rows
