"""A network that teaches itself: its early exits learn from its deepest answer."""

from __future__ import annotations

from typing import Literal, cast

from torch import nn

from potstill.batch import Batch, Share, Signals, Step
from potstill.errors import UserError
from potstill.matching.layers import PlannedPair
from potstill.matching.objective import Objective
from potstill.models.exits import EXIT, FEATURE, WithExits
from potstill.schemes.offline import Offline
from potstill.schemes.stages import Stage
from potstill.schemes.ties import tied
from potstill.teachers import mean_log_probabilities

__all__ = ["DeepSupervision"]

DEEPEST = "deepest"


class DeepSupervision(nn.Module):
    """Exits at tapped layers; each is taught by the labels and by the deepest answer, detached.

    A term that compares logits sees an exit's answer and the deepest one's; a term that compares features
    sees the exit's bottleneck and the deepest features. The deepest answer learns from the labels alone,
    at weight 1. A network that does not learn is computed as far as its last exit while labels alone teach.

    Args:
        student: The network with its exits.
        objective: What an exit minimises; ``labels`` 0.7, ``kl`` 0.3 / 9 at temperature 3 and a small
            ``feature_mse`` are the authors'.
        taught_by: ``deepest``, or ``ensemble``: the mean of all exits' probabilities, which then teaches
            the deepest answer too.
        train_backbone: Train the network itself; otherwise only its exits learn, and it stays as it is.

    Raises:
        UserError: If a term cannot compare an exit with the deepest one.

    Reference:
        Zhang and others, "Be Your Own Teacher: Improve the Performance of Convolutional Neural Networks
        via Self Distillation", 2019, https://arxiv.org/abs/1905.08094

    >>> import torch
    >>> from torch.nn.functional import cross_entropy
    >>> convolutions = nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 8, 3, 2)
    >>> net = nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(72, 3))
    >>> images = torch.randn(4, 1, 9, 9)
    >>> supervised = lambda signals, batch: cross_entropy(signals.output, batch.target, reduction="none")
    >>> scheme = DeepSupervision(WithExits(net, ["1"], images), Objective({"kl": {}}, supervised))
    >>> batch = Batch({"student": images}, torch.arange(4) % 3, None, torch.arange(4))
    >>> sorted(scheme(batch).parts)
    ['1.kl', '1.labels', 'deepest.labels']
    """

    def __init__(
        self,
        student: WithExits,
        objective: Objective,
        *,
        taught_by: Literal["deepest", "ensemble"] = "deepest",
        train_backbone: bool = True,
    ) -> None:
        super().__init__()
        self.taught_by = taught_by
        self.train_backbone = train_backbone
        self.progress = 0.0
        self.objective = objective
        if not train_backbone:
            student.model.requires_grad_(False)
        self.parts = nn.ModuleDict({"student": student})
        object.__setattr__(self, "_student", student)
        self._deepest = objective.without_terms()
        self._exits = {path: self._planned(path) for path in student.paths}

    def _planned(self, path: str) -> Objective:
        """The objective of one exit, its layers planned: its bottleneck against the deepest features."""
        objective, deepest = self.objective.copied(), FEATURE + self.student.deepest
        objective.plan = []
        for term in objective.terms.values():
            if term.signal == "logits":
                continue
            if term.signal in ("gradients", "attention") or term.spec.spans != "each" or term.spec.learns:
                raise UserError(
                    term.where, f"{term.config.loss} cannot compare an exit with the deepest features"
                )
            if term.config.layers != "auto":
                raise UserError(f"{term.where}.layers", "has no meaning here: each exit has one bottleneck")
            reason = "each exit with the deepest features"
            planned = PlannedPair(term.name, FEATURE + path, deepest, (), (), "", reason, FEATURE + path)
            objective.plan.append(planned)
        return objective

    @property
    def student(self) -> WithExits:
        """The network with its exits."""
        return cast(WithExits, self.__dict__["_student"])

    @property
    def networks(self) -> dict[str, nn.Module]:
        """The network with its exits."""
        return {"student": self.student}

    @property
    def watched(self) -> dict[str, bool]:
        """The student is evaluated after each epoch, and kept."""
        return {"student": True}

    @property
    def stages(self) -> tuple[Stage, ...]:
        """One stage, one phase."""
        return (Stage("train"),)

    def enter(self, stage: str) -> None:
        """Nothing changes with the one stage."""

    def stepped(self, steps: int) -> None:
        """Nothing follows the optimiser's steps."""

    def train(self, mode: bool = True) -> DeepSupervision:
        """Train the exits; a network that does not learn stays in eval mode."""
        super().train(mode)
        if not self.train_backbone:
            self.student.model.eval()
        return self

    def trainable(self, stage: str = "train", phase: str = "train") -> dict[str, nn.Module]:
        """The network with its exits, or its exits alone."""
        return {"student": self.parts["student"]}

    def counts(self, batch: Batch, phase: str = "train") -> dict[str, float]:
        """What each part of the loss is divided by for this batch; no forward pass."""
        counts = self.objective.counts(batch)
        return {f"{name}.{part}": count for name in (*self._exits, DEEPEST) for part, count in counts.items()}

    def control(self, student: nn.Module) -> Offline:
        """The same training of ``student`` without exits: labels alone, at weight 1."""
        plain = student.model if isinstance(student, WithExits) else student
        return Offline(plain, None, self.objective.without_terms())

    def forward(self, batch: Batch, phase: str = "train") -> Step:
        """One pass of the network with all exits, or of what comes before the last one.

        Args:
            batch: What it sees.
            phase: ``train``.

        Returns:
            The parts of the loss by ``exit.part``, and the deepest answer that was computed.
        """
        if not self.train_backbone and self.student.model.training:  # someone called .train() on it
            self.student.model.eval()
        whole = self.train_backbone or bool(self.objective.active(self.progress).keys() - {"labels"})
        answer: Signals = self.parts["student"](batch.input("student"), whole=whole)
        lesson = self._lesson(answer) if whole else None
        parts: dict[str, Share] = {}
        for path, objective in self._exits.items():
            mine = Signals(answer.taps[EXIT + path], answer.taps)
            shares = objective.shares(mine, lesson, batch, self.progress)
            idle = () if "labels" in shares else (mine.output,)
            parts |= {f"{path}.{part}": share for part, share in tied(shares, idle).items()}
        if self.train_backbone:
            shares = self._deepest.shares(answer, None, batch, self.progress)
            if self.taught_by == "ensemble":
                logits = {name for name, term in self.objective.terms.items() if term.signal == "logits"}
                taught = next(iter(self._exits.values())).shares(answer, lesson, batch, self.progress)
                shares |= {name: share for name, share in taught.items() if name in logits}
            parts |= {f"{DEEPEST}.{part}": share for part, share in shares.items()}
        return Step(parts, answer)

    def _lesson(self, answer: Signals) -> Signals:
        """What teaches the exits, without a gradient."""
        deepest = FEATURE + self.student.deepest
        taps = {deepest: answer.taps[deepest].detach()}
        if self.taught_by == "deepest":
            return Signals(answer.output.detach(), taps)
        outputs = [answer.output, *(answer.taps[EXIT + path] for path in self._exits)]
        return Signals(mean_log_probabilities(outputs).detach(), taps)
