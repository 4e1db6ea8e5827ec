"""What a record holds: the code and shape of a teacher's output and of each layer that is kept with it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from potstill.cache.codes import Code, code_from
from potstill.cache.tokens import Tokens, word_code_from
from potstill.errors import UserError
from potstill.losses.heads import Draws, Projected, TopK

__all__ = ["OUTPUT", "Field", "Layout"]

OUTPUT = ""
"""Name of the output among the layers."""


@dataclass(frozen=True)
class Field:
    """One tensor of a record.

    Attributes:
        path: Path of the layer, empty for the output.
        shape: Shape of one sample's tensor.
        code: How it is written: the output row by row of its last dimension, a layer as one row.
        dtype: What it is read as.
    """

    path: str
    shape: tuple[int, ...]
    code: Code
    dtype: torch.dtype = torch.float32

    @property
    def _rows(self) -> tuple[int, ...]:
        return self.shape if self.path == OUTPUT else (math.prod(self.shape),)

    @property
    def width(self) -> int:
        """Bytes of one sample."""
        *before, size = self._rows
        return math.prod(before) * self.code.width(size)

    def encode(self, tensor: Tensor) -> Tensor:
        """``(N, *shape)`` as bytes ``(N, width)``.

        Raises:
            UserError: If it is not finite or of another shape.
        """
        if tuple(tensor.shape[1:]) != self.shape:
            what = f"its layer {self.path!r} gave" if self.path else "it answered"
            raise UserError(
                "teacher.cache", f"{what} {tuple(tensor.shape[1:])} for one sample and {self.shape} before"
            )
        if not bool(tensor.isfinite().all()):
            raise UserError("teacher", "answers with NaN or infinity, which no cache keeps")
        return self.code.encode(tensor.reshape(len(tensor), *self._rows)).reshape(len(tensor), self.width)

    def decode(self, content: Tensor) -> Tensor:
        """Bytes ``(N, width)`` as ``(N, *shape)``."""
        *before, size = self._rows
        rows = content.reshape(len(content), *before, self.code.width(size))
        return self.code.decode(rows, size).reshape(len(content), *self.shape).to(self.dtype)


class Layout:
    """The fields of a record, one after the other, filled up to an even number of bytes.

    Args:
        fields: What a record holds.

    >>> from potstill.cache.codes import Affine
    >>> layout = Layout([Field("", (10,), Affine())])
    >>> layout.size, layout.decode(layout.encode({"": torch.ones(2, 10)}, np.arange(2)))[""].shape
    (14, torch.Size([2, 10]))
    """

    def __init__(self, fields: Sequence[Field | Tokens]) -> None:
        self.fields = tuple(fields)
        width = sum(field.width for field in self.fields)
        self.size = width + width % 2

    @property
    def tokens(self) -> Tokens | None:
        """The output, where it is that of a language model."""
        return next((field for field in self.fields if isinstance(field, Tokens)), None)

    def encode(self, answers: Mapping[str, Tensor | Projected], index: NDArray[np.int64]) -> Tensor:
        """Answers ``(N, ...)`` by path to samples ``(N,)`` as records ``(N, size)`` uint8 on the CPU."""
        parts = []
        for field in self.fields:
            answer = answers[field.path]
            device = answer.hidden.device if isinstance(answer, Projected) else answer.device
            with torch.no_grad(), torch.autocast(device.type, enabled=False):
                if isinstance(field, Tokens):
                    assert isinstance(answer, Projected), "language models give hidden states"
                    parts.append(field.encode(answer, index).cpu())
                else:
                    assert isinstance(answer, Tensor), "all others give tensors"
                    parts.append(field.encode(answer).cpu())
        rows = torch.cat(parts, dim=1)
        return torch.nn.functional.pad(rows, (0, self.size - rows.shape[1]))

    def decode(self, records: Tensor) -> dict[str, Any]:
        """Records ``(N, size)`` as tensors by path; the output of a language model as known words."""
        found: dict[str, Tensor | TopK | Draws] = {}
        begin = 0
        with torch.autocast(records.device.type, enabled=False):
            for field in self.fields:
                found[field.path] = field.decode(records[:, begin : begin + field.width])
                begin += field.width
        return found

    def plain(self) -> list[dict[str, Any]]:
        """Plain values for a header."""
        return [
            {
                "path": field.path,
                "shape": list(field.shape),
                "code": field.code.name,
                "dtype": str(field.dtype).removeprefix("torch."),
            }
            for field in self.fields
        ]

    @classmethod
    def from_plain(cls, rows: Sequence[Mapping[str, Any]]) -> Layout:
        """What :meth:`plain` gave."""
        fields: list[Field | Tokens] = []
        for row in rows:
            words = word_code_from(row["code"])
            if words is not None:
                length, size = row["shape"]
                fields.append(Tokens(length, size, words))
                continue
            code, dtype = code_from(row["code"]), getattr(torch, row["dtype"])
            fields.append(Field(row["path"], tuple(row["shape"]), code, dtype))
        return cls(fields)

    def describe(self) -> str:
        """In words: ``output (10) affine8, layer3 (64, 8, 8) float16``."""
        return ", ".join(f"{field.path or 'output'} {field.shape} {field.code.name}" for field in self.fields)
