"""Which sample is it: student and teacher recognise each other's answer among those of other samples.

Shapes: embeddings ``(N, E)`` of pooled features ``(N, C)``; a value per sample, ``(N,)``. The other
samples' embeddings come from a memory with a row for each sample of the training set.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from potstill.losses._declare import Positive, Range, Unit, matches
from potstill.losses.reduce import blanked, masked
from potstill.losses.relations._pairs import unit_rows

__all__ = ["Contrastive", "contrastive"]

Count = Annotated[int, Range(least=1)]


class Contrastive(nn.Module):
    """Embeds both networks' vectors and remembers the embedding of every training sample.

    The memory, and the number of the step from which the negatives are drawn, stand in the checkpoints.
    :meth:`forward` changes neither: :meth:`remember` does, with the rows of all processes.

    Args:
        student: Shape of the student's vectors, batch first.
        teacher: Shape of the teacher's.
        samples: Size of the training set.
        temperature: Above 0; divides the cosines.
        embedding: Length of the embeddings.
        num_negatives: How many rows of the memory a batch is told apart from; all others, where the
            training set has no more.
        momentum: 0 to 1: how much of its old embedding a sample's row keeps.

    Raises:
        ValueError: If ``samples`` is missing or below 2.
    """

    step: Tensor
    student_memory: Tensor
    teacher_memory: Tensor

    def __init__(
        self,
        student: Sequence[int],
        teacher: Sequence[int],
        *,
        samples: int | None = None,
        temperature: Positive = 0.07,
        embedding: Count = 128,
        num_negatives: Count = 16384,
        momentum: Unit = 0.5,
    ) -> None:
        super().__init__()
        if samples is None or samples < 2:
            raise ValueError(
                f"remembers every training sample: expected samples=, their number, at least 2, got {samples}"
            )
        self.temperature, self.momentum = temperature, momentum
        self.num_negatives = min(num_negatives, samples)
        self.student = nn.Linear(student[-1], embedding)
        self.teacher = nn.Linear(teacher[-1], embedding)
        generator = torch.Generator().manual_seed(0)  # the same rows in every process
        for name in ("student_memory", "teacher_memory"):
            self.register_buffer(name, unit_rows(torch.randn(samples, embedding, generator=generator)))
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    def forward(
        self, student: Tensor, teacher: Tensor, *, where: Tensor | None = None, index: Tensor
    ) -> Tensor:
        """:func:`contrastive` of the embeddings, against rows that the number of the step decides.

        Args:
            student: Vectors ``(N, C)``.
            teacher: Vectors ``(N, C')``.
            where: Boolean ``(N,)``: which samples count.
            index: Position of each sample in the training set, ``(N,)``.

        Returns:
            One value per sample, ``(N,)``.

        Raises:
            ValueError: If an index lies outside the training set.
        """
        self._check(index)
        ours, theirs = self._embedded(student, teacher, where)
        return contrastive(
            ours,
            theirs,
            student_memory=self.student_memory,
            teacher_memory=self.teacher_memory,
            index=index,
            negatives=self._drawn(),
            temperature=self.temperature,
            where=where,
        )

    @torch.no_grad()
    def remember(
        self, student: Tensor, teacher: Tensor, *, where: Tensor | None = None, index: Tensor
    ) -> None:
        """Bring the rows of a batch up to date, and count the step.

        Args:
            student: Vectors of all processes' samples, ``(N, C)``, each sample once.
            teacher: Vectors ``(N, C')``.
            where: Boolean ``(N,)``: which samples count; the rows of others stay.
            index: Position of each sample in the training set, ``(N,)``.
        """
        self._check(index)
        valid = torch.ones_like(index, dtype=torch.bool) if where is None else where
        embedded = self._embedded(student, teacher, where)
        for memory, rows in zip((self.student_memory, self.teacher_memory), embedded, strict=True):
            mixed = self.momentum * memory[index] + (1 - self.momentum) * unit_rows(rows)
            memory[index[valid]] = unit_rows(mixed)[valid]
        self.step += 1

    def _embedded(self, student: Tensor, teacher: Tensor, where: Tensor | None) -> tuple[Tensor, Tensor]:
        dtype = self.student.weight.dtype
        return (
            self.student(blanked(student, where).to(dtype)),
            self.teacher(blanked(teacher, where).to(dtype)),
        )

    def _drawn(self) -> Tensor:
        """Rows to tell apart from, ``(K,)``: a pure function of the step, so that processes agree."""
        generator = torch.Generator().manual_seed(int(self.step))
        rows = torch.randperm(len(self.student_memory), generator=generator)[: self.num_negatives]
        return rows.to(self.student_memory.device)

    def _check(self, index: Tensor) -> None:
        samples = len(self.student_memory)
        if bool(((index < 0) | (index >= samples)).any()):
            raise ValueError(
                f"index: expected positions in a training set of {samples} samples, 0 to {samples - 1}, got "
                f"{int(index.min())} to {int(index.max())}"
            )


@matches(
    "vectors",
    weight=0.8,
    at="last",
    learns=Contrastive,
    zero_at_equality=False,
    reason="a cross-entropy of recognising a sample among others: 0 only with infinitely certain answers",
)
def contrastive(
    student: Tensor,
    teacher: Tensor,
    *,
    student_memory: Tensor,
    teacher_memory: Tensor,
    index: Tensor,
    negatives: Tensor,
    temperature: Positive = 0.07,
    where: Tensor | None = None,
) -> Tensor:
    """Noise-contrastive loss of telling a sample's own embedding from those of other samples (CRD).

    The student's embedding is compared with the teacher's memory and the teacher's with the student's.
    In a recipe :class:`Contrastive` makes the embeddings and keeps the memories. Two things differ from
    the authors' code: a batch shares its negatives, which makes one matrix product of 128 numbers a pair
    where they copy a table for every sample (a sample is never its own negative); and Z is the mean of
    exp(cos / T) over random directions, ``exp(1 / (2 E T^2))``, which they measure in their first batch.

    Formula:
        -log sigmoid(a_own) - sum over M negatives of log sigmoid(-a_j), student to teacher's memory plus
        teacher to student's; a = cos / T - log Z - log M, Z = exp(1 / (2 E T^2))

    Args:
        student: Embeddings ``(N, E)``, of any length.
        teacher: Embeddings ``(N, E)``.
        student_memory: Remembered embeddings of length 1, ``(S, E)``.
        teacher_memory: The same of the teacher.
        index: The memories' row of each sample, ``(N,)``.
        negatives: Rows to tell apart from, ``(K,)``.
        temperature: Above 0; divides the cosines.
        where: Boolean ``(N,)``: which samples count.

    Returns:
        One value per sample, ``(N,)``, above 0.

    Raises:
        ValueError: If the shapes of embeddings, memories and index do not fit.

    Reference:
        Tian, Krishnan, Isola, "Contrastive Representation Distillation", 2019,
        https://arxiv.org/abs/1910.10699

    Example:
        >>> memory, own = torch.eye(4), torch.tensor([0])
        >>> rows = {"student_memory": memory, "teacher_memory": memory, "negatives": torch.arange(4)}
        >>> right, wrong = (contrastive(memory[:1], memory[i : i + 1], index=own, **rows) for i in (0, 1))
        >>> bool(right < wrong)
        True
    """
    rows, columns = (tuple(shape) for shape in (student.shape, student_memory.shape))
    if student.shape != teacher.shape or len(rows) != 2 or index.shape != student.shape[:1]:
        raise ValueError(
            f"expected embeddings (N, E) of one shape with an index (N,), got student {rows}, teacher "
            f"{tuple(teacher.shape)} and index {tuple(index.shape)}"
        )
    if student_memory.shape != teacher_memory.shape or columns[1:] != rows[1:]:
        raise ValueError(f"expected memories (S, {rows[1]}), got {columns} and {tuple(teacher_memory.shape)}")
    ours, theirs = unit_rows(blanked(student, where)), unit_rows(blanked(teacher, where))
    others = negatives != index.unsqueeze(1)  # (N, K)
    values = _recognition(ours, teacher_memory, index, negatives, others, temperature)
    values = values + _recognition(theirs, student_memory, index, negatives, others, temperature)
    return masked(values, where)


def _recognition(
    directions: Tensor, memory: Tensor, index: Tensor, negatives: Tensor, others: Tensor, temperature: float
) -> Tensor:
    """Binary cross-entropy of a sample's own row, and of the others' among the negatives: ``(N,)``."""
    memory = memory.to(directions.dtype)
    log_mean = 1 / (2 * memory.shape[1] * temperature**2)
    offsets = log_mean + others.sum(dim=1).clamp(min=1).to(directions.dtype).log()  # (N,)
    own = (directions * memory[index]).sum(dim=1) / temperature - offsets
    unlike = directions @ memory[negatives].T / temperature - offsets.unsqueeze(1)  # (N, K)
    mistaken = torch.where(others, -logsigmoid(-unlike), torch.zeros_like(unlike))
    return mistaken.sum(dim=1) - logsigmoid(own)
