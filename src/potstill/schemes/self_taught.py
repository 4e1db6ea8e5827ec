"""Students without another network: taught by their own average, or by smoothed labels.

Both are cheap answers to the question whether a teacher is needed at all.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Collection, Sequence
from typing import Any, cast

import torch
from torch import nn

from potstill.batch import Batch, Inputs, Signals, Step
from potstill.errors import UserError
from potstill.matching.objective import Objective
from potstill.matching.recording import LayerShape
from potstill.schemes.around import Around
from potstill.schemes.offline import Offline
from potstill.schemes.paraphrasing import refuse_paraphrasers
from potstill.teachers import Frozen

__all__ = ["MeanTeacher", "SmoothedLabels"]


class MeanTeacher(Around):
    """A student taught by the running average of its own weights.

    Args:
        student: The network to train.
        objective: What it minimises; terms compare it with its average.
        example: A small batch, needed where terms compare layers.
        samples: Size of the training set, needed by losses that remember every sample.
        decay: Of the average, 0 to 1; the first steps use less, ``1 - 1 / (steps + 1)``.

    Reference:
        Tarvainen, Valpola, "Mean teachers are better role models", 2017,
        https://arxiv.org/abs/1703.01780

    >>> from torch.nn.functional import cross_entropy
    >>> batch = Batch({"student": torch.randn(8, 4)}, torch.arange(8) % 3, None, torch.arange(8))
    >>> supervised = lambda signals, batch: cross_entropy(signals.output, batch.target, reduction="none")
    >>> scheme = MeanTeacher(nn.Linear(4, 3), Objective({"kl": {}}, supervised))
    >>> scheme(batch).loss.backward()
    >>> scheme.stepped(1)
    """

    def __init__(
        self,
        student: nn.Module,
        objective: Objective,
        *,
        example: Batch | None = None,
        samples: int | None = None,
        decay: float = 0.999,
    ) -> None:
        refuse_paraphrasers(objective)
        average = Frozen(copy.deepcopy(student), role="student")
        inner = Offline(student, average, objective, example=example, samples=samples)
        super().__init__(inner)
        self.decay = decay
        teacher = inner.teacher
        assert isinstance(teacher, nn.Module), "the average is the teacher"
        # The average changes, so it belongs into checkpoints: it is a part, though no optimiser knows it.
        self.parts = nn.ModuleDict({"student": inner.parts["student"], "average": teacher})

    @property
    def networks(self) -> dict[str, nn.Module]:
        """The student and its average."""
        return {"student": self.student, "average": cast(Frozen, self.parts["average"]).network}

    def counts(self, batch: Batch, phase: str = "train") -> dict[str, float]:
        """What each part of the loss is divided by for this batch; no forward pass."""
        return self.inner.counts(batch, phase)

    def forward(self, batch: Batch, phase: str = "train") -> Step:
        """One pass of the student and its average."""
        self.adopt()
        step: Step = self.inner(batch, phase)
        return step

    @torch.no_grad()
    def stepped(self, steps: int) -> None:
        """Let the average follow after the optimiser's step number ``steps``, from 1."""
        decay = min(self.decay, 1.0 - 1.0 / (steps + 1))
        average, student = self.networks["average"], self.student
        for mean, value in zip(average.parameters(), student.parameters(), strict=True):
            mean.lerp_(value, 1.0 - decay)
        for kept, buffer in zip(average.buffers(), student.buffers(), strict=True):
            kept.copy_(buffer)


class SmoothedLabels(nn.Module):
    """A teacher that is no network: sure of the label to a degree, and of nothing else (Tf-KD).

    Args:
        classes: Number of classes.
        correct: Probability of the label, the rest is spread evenly.

    Raises:
        UserError: If ``correct`` does not exceed chance.

    Reference:
        Yuan and others, "Revisiting Knowledge Distillation via Label Smoothing Regularization", 2019,
        https://arxiv.org/abs/1909.11723

    >>> batch = Batch({"student": torch.zeros(1, 4)}, torch.tensor([1]), None, torch.arange(1))
    >>> SmoothedLabels(3, correct=0.9)(batch).output.exp()
    tensor([[0.0500, 0.9000, 0.0500]])
    """

    def __init__(self, classes: int, correct: float = 0.99) -> None:
        super().__init__()
        if not 1.0 / classes < correct < 1.0:
            raise UserError("scheme.correct", f"must lie between chance (1/{classes}) and 1, got {correct:g}")
        self.classes, self.correct = classes, correct

    @property
    def network(self) -> nn.Module:
        """Itself: there are no layers to tap."""
        return self

    def layers(self, inputs: Inputs) -> Sequence[LayerShape]:
        """None."""
        return ()

    def tapping(self, paths: Sequence[str], pooled: Collection[str] = ()) -> SmoothedLabels:
        """Itself, where nothing is tapped.

        Raises:
            UserError: If anything is.
        """
        if paths:
            raise UserError("teacher", "smoothed labels have no layers to compare; match logits only")
        return self

    def forward(self, batch: Batch, given: Any = None) -> Signals:
        """Log-probabilities ``(N, classes)`` around each sample's label, or its mixed labels."""
        if batch.target is None:
            raise UserError("teacher", "smoothed labels need labels, and this data has none")
        rest = (1.0 - self.correct) / (self.classes - 1)
        if batch.target.dim() == 2:
            return Signals((rest + (self.correct - rest) * batch.target).log(), {})
        others = math.log(rest)
        output = torch.full((len(batch), self.classes), others, device=batch.target.device)
        return Signals(output.scatter(1, batch.target.unsqueeze(1), math.log(self.correct)), {})
