"""Modules that make a student's tensor comparable with a teacher's: channels, size, tokens.

An adapter is trained with the student and thrown away with the teacher: it is no part of what ships.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, interpolate

from potstill.errors import UserError

__all__ = ["Adapter", "build", "kind_of"]

KINDS = {2: "vector", 3: "tokens", 4: "maps"}
RIDGE = 1e-4
"""How much a fit shrinks what the samples hardly show, as a share of a channel's mean square."""


def kind_of(shape: Sequence[int]) -> str:
    """``vector`` (N, C), ``tokens`` (N, L, C), ``maps`` (N, C, H, W), or ``other``.

    >>> kind_of((2, 16, 8, 8))
    'maps'
    """
    return KINDS.get(len(shape), "other")


class Adapter(nn.Module):
    """Brings a student's tensor to a teacher's shape; made by :func:`build`.

    Args:
        student: Shape of the student's tensor, batch first.
        teacher: Shape of the teacher's tensor, batch first.
        normalised: Project even between equal shapes, and normalise over the batch what comes out (tokens:
            over their channels).
    """

    def __init__(self, student: Sequence[int], teacher: Sequence[int], *, normalised: bool = False) -> None:
        super().__init__()
        self.student_kind, self.teacher_kind = kind_of(student), kind_of(teacher)
        self.pool_away = self.student_kind == "maps" and self.teacher_kind == "vector"
        channel = 1 if self.student_kind == "maps" else -1
        self.channels = (student[channel], teacher[1 if self.teacher_kind == "maps" else -1])
        self.sizes = (self._size(student), self._size(teacher))
        self.shrinks = self.pool_away or all(a >= b for a, b in zip(*self.sizes, strict=True))
        self.project: nn.Module | None = None
        self.norm: nn.Module | None = None
        if normalised or self.channels[0] != self.channels[1]:
            both_maps = self.teacher_kind == "maps"
            self.project = (
                nn.Conv2d(*self.channels, 1, bias=False) if both_maps else nn.Linear(*self.channels)
            )
        if normalised:
            kinds = {"maps": nn.BatchNorm2d, "tokens": nn.LayerNorm, "vector": nn.BatchNorm1d}
            self.norm = kinds[self.teacher_kind](self.channels[1])

    @staticmethod
    def _size(shape: Sequence[int]) -> tuple[int, ...]:
        return {"maps": tuple(shape[2:]), "tokens": (shape[1],)}.get(kind_of(shape), ())

    def forward(self, features: Tensor) -> Tensor:
        """Adapt ``features``.

        Args:
            features: The student's tensor: maps ``(N, C, H, W)``, tokens ``(N, L, C)`` or vectors
                ``(N, C)``.

        Returns:
            The same samples in the teacher's shape.
        """
        if self.pool_away:
            features = features.mean(dim=(2, 3))  # (N, C)
        elif self.shrinks:  # the projection is cheaper on the smaller map, and commutes with a mean
            features = self._resize(features)
        if self.project is not None:
            features = self.project(features)
        if self.norm is not None:
            features = self.norm(features)
        return features if self.pool_away or self.shrinks else self._resize(features)

    def _resize(self, features: Tensor) -> Tensor:
        ours, theirs = self.sizes
        if ours == theirs:
            return features
        if self.student_kind == "tokens":
            turned = features.transpose(1, 2)  # (N, C, L)
            return interpolate(turned, size=theirs[0], mode="linear").transpose(1, 2)
        if self.shrinks:
            return adaptive_avg_pool2d(features, (theirs[0], theirs[1]))
        return interpolate(features, size=theirs, mode="bilinear")

    @torch.no_grad()
    def fit(self, student: Tensor, teacher: Tensor, where: Tensor | None = None) -> float:
        """Set the projection to its least-squares solution, with a ridge of ``RIDGE``.

        Args:
            student: What :meth:`forward` would take.
            teacher: What it should give.
            where: Which of the student's tokens count, ``(N, L)``; used where both have as many.

        Returns:
            Share of the teacher's variance that it explains, at most 1; below 0 where the mean alone, which
            a projection without bias cannot give, would be nearer.

        Raises:
            ValueError: If there is no bare projection to fit, or there are fewer positions than channels.
        """
        if not isinstance(self.project, nn.Conv2d | nn.Linear) or self.norm is not None:
            raise ValueError(f"expected a projection without a norm, got '{self.describe()}'")
        inputs = _rows(student.mean(dim=(2, 3)) if self.pool_away else self._resize(student))
        wanted = _rows(teacher)
        if where is not None and teacher.shape[:2] == where.shape == student.shape[:2]:
            there = where.flatten().cpu()
            inputs, wanted = inputs[there], wanted[there]
        if len(inputs) < self.channels[0]:
            raise ValueError(
                f"expected at least as many positions as the layer has channels ({self.channels[0]}), got "
                f"{len(inputs)} in the example"
            )
        weight, bias, left = _least_squares(inputs, wanted, bias=self.project.bias is not None)
        self.project.weight.copy_(weight.reshape(self.project.weight.shape))
        if self.project.bias is not None:
            self.project.bias.copy_(bias)
        spread = (wanted - wanted.mean(dim=0)).square().sum()
        return 1.0 - left / float(spread.clamp(min=torch.finfo(spread.dtype).tiny))

    def describe(self) -> str:
        """What it does, in words.

        >>> Adapter((2, 16, 32, 32), (2, 64, 16, 16)).describe()
        '1x1 conv 16->64, pool 32x32->16x16'
        """
        steps = []
        if self.project is not None:
            name = "1x1 conv" if isinstance(self.project, nn.Conv2d) else "linear"
            steps.append(f"{name} {self.channels[0]}->{self.channels[1]}")
        if self.norm is not None:
            steps.append("normalised")
        ours, theirs = ("x".join(map(str, size)) for size in self.sizes)
        if self.pool_away:
            steps.append(f"pool {ours} away")
        elif ours != theirs:
            pools = self.shrinks and self.student_kind == "maps"
            steps.append(f"{'pool' if pools else 'interpolate'} {ours}->{theirs}")
        return ", ".join(steps)


def _rows(features: Tensor) -> Tensor:
    """Maps, tokens or vectors as ``(positions, C)`` float64 on the CPU."""
    last = features.movedim(1, -1) if features.dim() == 4 else features
    return last.flatten(0, -2).double().cpu()


def _least_squares(inputs: Tensor, wanted: Tensor, *, bias: bool) -> tuple[Tensor, Tensor, float]:
    """Weight ``(C_t, C_s)`` and bias ``(C_t,)`` (0 without one) of the best map, and its squared error."""
    channels = inputs.shape[1]
    ridge = inputs.new_full((channels,), RIDGE * float(inputs.square().mean()) * len(inputs))
    if bias:
        inputs = torch.cat([inputs, inputs.new_ones(len(inputs), 1)], dim=1)
        ridge = torch.cat([ridge, ridge.new_zeros(1)])
    solved = torch.linalg.lstsq(inputs.T @ inputs + ridge.diag(), inputs.T @ wanted).solution
    left = float((wanted - inputs @ solved).square().sum())
    return solved[:channels].T, solved[channels:].sum(dim=0), left


def build(
    student_shape: Sequence[int], teacher_shape: Sequence[int], *, normalised: bool = False, where: str = ""
) -> Adapter | None:
    """The adapter from a student's shape to a teacher's, ``None`` where they are equal.

    Args:
        student_shape: Shape of the student's tensor; the first dimension is the batch.
        teacher_shape: Shape of the teacher's tensor.
        normalised: Always an adapter, with a norm at its end.
        where: Dotted key for the message.

    Raises:
        UserError: If no adapter makes them comparable, with both shapes.

    >>> build((8, 64), (8, 64)) is None
    True
    >>> build((8, 64), (8, 256)).describe()
    'linear 64->256'
    """
    if tuple(student_shape[1:]) == tuple(teacher_shape[1:]) and not normalised:
        return None
    kinds = (kind_of(student_shape), kind_of(teacher_shape))
    if "other" in kinds or (kinds[0] != kinds[1] and kinds != ("maps", "vector")):
        raise UserError(
            where,
            f"cannot compare the student's {kinds[0]} {tuple(student_shape)} with the teacher's {kinds[1]} "
            f"{tuple(teacher_shape)}; choose layers of the same kind",
        )
    return Adapter(student_shape, teacher_shape, normalised=normalised)
