"""Generations: each fresh network is taught by the one before it."""

from __future__ import annotations

import copy
from collections.abc import Collection, Sequence
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from potstill import distributed
from potstill.batch import Batch, Inputs, Signals, Step
from potstill.errors import UserError
from potstill.matching.objective import Objective
from potstill.matching.recording import LayerShape
from potstill.schemes.offline import Offline
from potstill.schemes.paraphrasing import refuse_paraphrasers
from potstill.schemes.stages import Stage
from potstill.teachers import Frozen, Teacher, as_teacher

__all__ = ["BornAgain"]

Knowledge = Literal["plain", "permuted", "weighted"]


class BornAgain(nn.Module):
    """A chain of students, each trained in full, one after the other.

    The first is taught by ``teacher``, or by the labels alone where there is none; each next one by the
    one before. Networks may differ: a chain through an assistant is the same scheme.

    Args:
        students: The fresh networks in the order of their training, each with weights of its own.
        teacher: Who teaches the first; ``None`` for labels alone.
        objective: What each generation minimises.
        example: A small batch, needed where terms compare layers.
        samples: Size of the training set, needed by losses that remember every sample.
        knowledge: ``plain``; ``permuted`` (DKPP): the teacher's logits but for the largest are shuffled
            within each sample; ``weighted`` (CWTM): no terms, each sample's supervised loss is weighted
            by the teacher's confidence, ``max p_t`` over its mean in the batch.

    Raises:
        UserError: If there is no student, an example is missing, or layers cannot be compared.

    Reference:
        Furlanello and others, "Born-Again Neural Networks", 2018, https://arxiv.org/abs/1805.04770

    >>> from torch.nn.functional import cross_entropy
    >>> batch = Batch({"student": torch.randn(8, 4)}, torch.arange(8) % 3, None, torch.arange(8))
    >>> supervised = lambda signals, batch: cross_entropy(signals.output, batch.target, reduction="none")
    >>> chain = BornAgain([nn.Linear(4, 3), nn.Linear(4, 3)], None, Objective({"kl": {}}, supervised))
    >>> [sorted(chain(batch, stage.name).parts) for stage in chain.stages]
    [['labels'], ['kl', 'labels']]
    """

    def __init__(
        self,
        students: Sequence[nn.Module],
        teacher: nn.Module | None,
        objective: Objective,
        *,
        example: Batch | None = None,
        samples: int | None = None,
        knowledge: Knowledge = "plain",
    ) -> None:
        super().__init__()
        if not students:
            raise UserError("scheme.generations", "expected at least one generation, got none")
        refuse_paraphrasers(objective)
        generations = []
        taught = None if teacher is None else cast(Teacher, as_teacher(teacher))
        for student in students:
            goal = objective if taught is not None else objective.without_terms()
            if taught is not None and knowledge == "weighted":
                goal = Objective({}, _Confident(objective, taught), 1.0)
            shown = _Permuted(taught) if taught is not None and knowledge == "permuted" else taught
            pupil = None if knowledge == "weighted" else cast(nn.Module | None, shown)
            generations.append(Offline(student, pupil, goal, example=example, samples=samples))
            taught = Frozen(copy.deepcopy(student), role="student")
        names = [f"generation{number}" for number in range(1, len(students) + 1)]
        self.parts = nn.ModuleDict(
            {name: each.parts["student"] for name, each in zip(names, generations, strict=True)}
        )
        object.__setattr__(self, "_generations", dict(zip(names, generations, strict=True)))
        self._current = names[0]
        self._progress = 0.0
        self.knowledge = knowledge

    # --- where it stands ------------------------------------------------------------------------------

    @property
    def generations(self) -> dict[str, Offline]:
        """The scheme of each generation by name."""
        found: dict[str, Offline] = self.__dict__["_generations"]
        return found

    @property
    def progress(self) -> float:
        """Share of the present generation's training that is done."""
        return self._progress

    @progress.setter
    def progress(self, value: float) -> None:
        self._progress = value
        self.generations[self._current].progress = value

    @property
    def networks(self) -> dict[str, nn.Module]:
        """The bare networks by generation."""
        return {name: each.student for name, each in self.generations.items()}

    @property
    def student(self) -> nn.Module:
        """The network of the present generation; after the training, the last."""
        return self.networks[self._current]

    @property
    def watched(self) -> dict[str, bool]:
        """The present generation is evaluated after each epoch, and kept."""
        return {self._current: True}

    @property
    def objective(self) -> Objective:
        """What the last generation minimises, its layers planned."""
        return self.generations[next(reversed(self.generations))].objective

    @property
    def stages(self) -> tuple[Stage, ...]:
        """One full training a generation."""
        return tuple(Stage(name, 1.0, (name,)) for name in self.generations)

    def enter(self, stage: str) -> None:
        """Begin a generation, or go on with it: what the one before has learnt becomes the teacher."""
        names = list(self.generations)
        place = names.index(stage)
        self._current = stage
        if place:
            before = self.networks[names[place - 1]]
            self._teacher_of(stage).load_state_dict(before.state_dict())

    def stepped(self, steps: int) -> None:
        """Nothing follows the optimiser's steps."""

    def _teacher_of(self, stage: str) -> nn.Module:
        generation = self.generations[stage]
        supervised = generation.objective.supervised
        teacher = supervised.teacher if isinstance(supervised, _Confident) else generation.teacher
        assert teacher is not None, "each generation but the first has a teacher"
        return teacher.network

    # --- training -------------------------------------------------------------------------------------

    def trainable(self, stage: str, phase: str) -> dict[str, nn.Module]:
        """The one generation that learns."""
        return {stage: self.parts[stage]}

    def counts(self, batch: Batch, phase: str) -> dict[str, float]:
        """What each part of the loss is divided by for this batch; no forward pass."""
        return self.generations[phase].counts(batch)

    def control(self, student: nn.Module) -> Offline:
        """One training of ``student`` by labels alone."""
        return Offline(student, None, self.objective.without_terms())

    def forward(self, batch: Batch, phase: str) -> Step:
        """One pass of the generation ``phase`` and its teacher."""
        generation = self.generations[phase]
        generation.parts["student"] = self.parts[phase]  # a loop may have wrapped it
        step: Step = generation(batch)
        return step

    def _apply(self, fn: Any, recurse: bool = True) -> BornAgain:
        """Move or cast the generations' teachers along with the rest."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for generation in self.generations.values():
            supervised = generation.objective.supervised
            if isinstance(supervised, _Confident):
                cast(nn.Module, supervised.teacher)._apply(fn, recurse)  # type: ignore[no-untyped-call]
            if isinstance(generation.teacher, nn.Module):
                generation.teacher._apply(fn, recurse)
        return self


class _Permuted(nn.Module):
    """A teacher whose logits, all but the largest of each sample, are shuffled (DKPP).

    The order follows from the sample and the view, so a resumed run sees the same.
    """

    def __init__(self, teacher: Teacher) -> None:
        super().__init__()
        self.teacher = cast(nn.Module, teacher)

    @property
    def network(self) -> nn.Module:
        """The wrapped teacher's network."""
        return cast(Teacher, self.teacher).network

    def layers(self, inputs: Inputs) -> Sequence[LayerShape]:
        """The wrapped teacher's layers."""
        return cast(Teacher, self.teacher).layers(inputs)

    def tapping(self, paths: Sequence[str], pooled: Collection[str] = ()) -> _Permuted:
        """The same with ``paths`` tapped."""
        return _Permuted(cast(Teacher, self.teacher).tapping(paths, pooled))

    def forward(self, batch: Batch, given: Any = None) -> Signals:
        """The teacher's answer with its dark knowledge permuted."""
        answer: Signals = self.teacher(batch, given)
        return Signals(permuted(answer.output, batch.index, batch.view), answer.taps)


def permuted(logits: Tensor, index: Tensor, view: int) -> Tensor:
    """Logits ``(N, C)`` with all but each row's largest in an order that its sample and view decide.

    >>> row = permuted(torch.tensor([[0.0, 9.0, 1.0, 2.0]]), torch.tensor([5]), view=0)
    >>> float(row[0, 1]), sorted(row[0].tolist())
    (9.0, [0.0, 1.0, 2.0, 9.0])
    """
    rows, classes = logits.shape
    generator = torch.Generator()
    keys = torch.empty(rows, classes)
    for row, sample in enumerate(index.tolist()):
        keys[row] = torch.rand(classes, generator=generator.manual_seed((sample << 20) + view))
    keys = keys.to(logits.device)
    top = logits.argmax(dim=1, keepdim=True)
    keys = keys.scatter(1, top, 2.0)  # the largest comes last
    places = torch.arange(classes, device=logits.device).expand(rows, classes).clone()
    places = places.scatter(1, top, classes)  # and its own place too
    order = keys.argsort(dim=1)[:, :-1]
    others = places.argsort(dim=1)[:, :-1]
    return logits.scatter(1, others, logits.gather(1, order))


class _Confident:
    """A supervised loss in which a sample counts as its teacher is sure of it (CWTM)."""

    def __init__(self, objective: Objective, teacher: Teacher) -> None:
        assert objective.supervised is not None, "generations learn from labels too"
        self._supervised = objective.supervised
        self.teacher = teacher

    def __call__(self, signals: Signals, batch: Batch) -> Tensor:
        """Values of the supervised loss, ``(N,)``, times ``max p_t`` over its mean in the batch."""
        values = self._supervised(signals, batch)
        confidence = self.teacher(batch).output.float().softmax(dim=-1).amax(dim=-1).to(values.dtype)
        if batch.where is not None:
            confidence = confidence.masked_fill(~batch.where, 0.0)
        rows = float(len(batch)) if batch.where is None else float(batch.where.sum())
        joint = distributed.sum_floats({"confidence": float(confidence.sum()), "rows": rows})
        return values * confidence * (joint["rows"] / max(joint["confidence"], 1e-12))
