"""A trained teacher teaches one student: distillation as Hinton and others (2015) described it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any, cast

from torch import Tensor, nn

from potstill.batch import Batch, Inputs, Share, Signals, Step
from potstill.errors import UserError
from potstill.matching.comparison import any_valid
from potstill.matching.fitting import fit_adapters
from potstill.matching.objective import Objective
from potstill.matching.taps import Tapped
from potstill.schemes.paraphrasing import SHARE, paraphrasing
from potstill.schemes.stages import Stage
from potstill.schemes.ties import tied
from potstill.teachers import Frozen, Teacher, as_teacher

__all__ = ["Offline", "StudentPart"]

PARAPHRASER = "paraphraser"
"""Name of the part, the stage, the phase and the loss of what learns before the student."""


class StudentPart(nn.Module):
    """All that is trained: the tapped student, its adapters and matchers, in one module that DDP sees.

    Args:
        tapped: The student with its taps.
        adapters: Adapters by key.
        sources: Which tap each adapter reads, by key.
        matchers: Modules of losses that learn, by key; the objective calls them.
    """

    def __init__(
        self, tapped: Tapped, adapters: nn.ModuleDict, sources: Mapping[str, str], matchers: nn.ModuleDict
    ) -> None:
        super().__init__()
        self.tapped = tapped
        self.adapters = adapters
        self.matchers = matchers
        self.sources = dict(sources)
        # Memories are large, and the same in every process as they come: DDP need not send them about.
        self._ddp_params_and_buffers_to_ignore = [f"matchers.{name}" for name, _ in matchers.named_buffers()]

    def forward(self, inputs: Inputs) -> Signals:
        """Answer to ``inputs`` ``(N, ...)``; adapted tensors stand among the taps under their key."""
        signals: Signals = self.tapped(inputs)
        taps = dict(signals.taps)
        for key, adapter in self.adapters.items():
            taps[key] = adapter(taps[self.sources[key]])
        return replace(signals, taps=taps)


class Offline(nn.Module):
    """A frozen teacher and one student that learns from it and from the labels.

    It knows nothing of the loop: ``scheme(batch).loss.backward()`` in a loop of your own is all there is
    to it. The teacher moves with the scheme (``.to``) but is no part of its state or parameters.

    Args:
        student: The network to train, as it is.
        teacher: A trained network, a :class:`~potstill.teachers.Frozen` or
            :class:`~potstill.teachers.Ensemble`; ``None`` for an objective without terms.
        objective: What to minimise.
        example: A small batch, needed where terms compare layers: adapters must exist before the
            optimiser is made.
        samples: Size of the training set, needed by losses that remember every sample.

    Raises:
        UserError: If a teacher or an example is missing, or layers cannot be found or compared.

    Reference:
        Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015,
        https://arxiv.org/abs/1503.02531

    >>> import torch
    >>> from torch.nn.functional import cross_entropy
    >>> batch = Batch({"student": torch.randn(8, 4)}, torch.arange(8) % 3, None, torch.arange(8))
    >>> supervised = lambda signals, batch: cross_entropy(signals.output, batch.target, reduction="none")
    >>> scheme = Offline(nn.Linear(4, 3), nn.Linear(4, 3), Objective({"kl": {}}, supervised))
    >>> step = scheme(batch)
    >>> step.loss.backward()
    >>> sorted(step.parts), [name for name, _ in scheme.named_parameters()]
    (['kl', 'labels'], ['parts.student.tapped.model.weight', 'parts.student.tapped.model.bias'])
    """

    teacher: Teacher | None

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module | None,
        objective: Objective,
        *,
        example: Batch | None = None,
        samples: int | None = None,
    ) -> None:
        super().__init__()
        self.objective = objective.copied()
        if teacher is None and objective.terms:
            raise UserError(
                "teacher", f"missing; distill.{next(iter(objective.terms))} has nothing to compare with"
            )
        if self.objective.needs_layers and example is None:
            raise UserError(
                "example",
                "missing; terms that compare layers need a small batch to plan them and make adapters",
            )
        taught = None if teacher is None else cast(Teacher, as_teacher(teacher))
        hear = getattr(taught.network, "asked", None) if isinstance(taught, Frozen) else None
        if hear is not None:  # a detector answers what its terms ask for
            hear(self.objective.terms.values())
        made = nn.ModuleDict()
        if taught is not None and example is not None and self.objective.needs_layers:
            layers = partial(taught.layers, example.input("teacher"))
            made = self.objective.build(student, example.input("student"), layers, samples)
            if self.objective.fitted:
                known = self.objective.plan, made, self.objective.fitted
                self.objective.plan = fit_adapters(*known, student, taught.network, example)
            taught = taught.tapping(self.objective.teacher_paths, self.objective.pooled_paths)
        plan = self.objective.plan
        sources = {pair.key: pair.student for pair in plan if pair.key in made}
        matchers = nn.ModuleDict({pair.matcher: made[pair.matcher] for pair in plan if pair.matcher})
        adapters = nn.ModuleDict({key: made[key] for key in sources})
        tapped = Tapped(student, self.objective.student_paths, role="student")
        part = StudentPart(tapped, adapters, sources, matchers)
        self.parts = nn.ModuleDict({"student": part})
        first = paraphrasing(plan, matchers)
        if first is not None:
            self.parts[PARAPHRASER] = first
        self.progress = 0.0
        # Plain attributes, not submodules: the teacher is never saved or trained with the scheme, and a
        # loop may put another wrapper (DDP, a compiled module) around the part.
        object.__setattr__(self, "teacher", taught)
        object.__setattr__(self, "_part", part)

    @property
    def student(self) -> nn.Module:
        """The bare student."""
        part: StudentPart = self.__dict__["_part"]
        return part.tapped.model

    @property
    def stages(self) -> tuple[Stage, ...]:
        """One stage of one phase; before it that of the paraphrasers, where a term has one."""
        if PARAPHRASER not in self.parts:
            return (Stage("train"),)
        return (Stage(PARAPHRASER, SHARE, (PARAPHRASER,)), Stage("train", 1.0 - SHARE))

    def enter(self, stage: str) -> None:
        """Called when a stage begins, and again after a resume within it; nothing changes here."""

    @property
    def networks(self) -> dict[str, nn.Module]:
        """The bare networks that are trained, by name."""
        return {"student": self.student}

    @property
    def watched(self) -> dict[str, bool]:
        """The student is evaluated after each epoch, and kept."""
        return {"student": True}

    def stepped(self, steps: int) -> None:
        """Nothing follows the optimiser's steps."""

    def trainable(self, stage: str = "train", phase: str = "train") -> dict[str, nn.Module]:
        """The parts that learn in ``stage`` and ``phase``, by name."""
        self._check_phase(phase)
        name = PARAPHRASER if phase == PARAPHRASER else "student"
        return {name: self.parts[name]}

    def counts(self, batch: Batch, phase: str = "train") -> dict[str, float]:
        """What each part of the loss is divided by for this batch; no forward pass."""
        self._check_phase(phase)
        if phase == PARAPHRASER:
            return {PARAPHRASER: float(len(batch) if batch.where is None else any_valid(batch.where).sum())}
        return self.objective.counts(batch)

    def control(self, student: nn.Module) -> Offline:
        """The same training of ``student`` without a teacher: labels alone, at weight 1."""
        return Offline(student, None, self.objective.without_terms())

    def forward(self, batch: Batch, phase: str = "train") -> Step:
        """One pass of student and, where a term asks, teacher.

        Args:
            batch: What both see.
            phase: ``train``, or ``paraphraser`` where a term has one: then only the teacher answers.

        Returns:
            The parts of the loss at the present :attr:`progress`, and the student's answer.
        """
        self._check_phase(phase)
        return self._paraphrased(batch) if phase == PARAPHRASER else self.lesson(batch)[0]

    def learnt(self, batch: Batch, objective: Objective) -> Step:
        """One pass of student and teacher with ``objective``: this scheme's own, or some of its parts."""
        return self.lesson(batch, objective)[0]

    def lesson(
        self, batch: Batch, objective: Objective | None = None, *, ask: bool = False
    ) -> tuple[Step, Signals | None]:
        """One pass of both, and what the teacher answered.

        Args:
            batch: What both see.
            objective: What is minimised; the scheme's own by default.
            ask: Ask the teacher also where no term does.
        """
        objective = self.objective if objective is None else objective
        student: Signals = self.parts["student"](batch.input("student"))
        active = objective.active(self.progress)
        asked = ask or any(name != "labels" for name in active)
        teacher = self.teacher(batch, student) if self.teacher is not None and asked else None
        part: StudentPart = self.__dict__["_part"]
        parts = objective.shares(student, teacher, batch, self.progress, dict(part.matchers.items()))
        return Step(self._reaching_all(parts, student), student), teacher

    def _paraphrased(self, batch: Batch) -> Step:
        """How well the paraphrasers reconstruct the teacher's layers."""
        assert self.teacher is not None, "only what has a teacher has paraphrasers"
        teacher = self.teacher(batch)
        where = None if batch.where is None else any_valid(batch.where)
        values: Tensor = self.parts[PARAPHRASER](dict(teacher.taps), where)
        return Step(
            {PARAPHRASER: Share(values.sum(), self.counts(batch, PARAPHRASER)[PARAPHRASER], 1.0)}, teacher
        )

    def _reaching_all(self, parts: dict[str, Share], student: Signals) -> dict[str, Share]:
        """Give what no part looks at a gradient of 0: DDP waits for every parameter, in every step."""
        plan = self.objective.plan
        read = {pair.key for pair in plan if pair.term in parts}
        idle = [student.taps[pair.key] for pair in plan if pair.key not in read and pair.key != pair.student]
        part: StudentPart = self.__dict__["_part"]
        unused = [pair.matcher for pair in plan if pair.matcher and pair.term not in parts]
        idle += [parameter for key in unused for parameter in part.matchers[key].parameters()]
        on_logits = {term.name for term in self.objective.terms.values() if term.on_output} | {"labels"}
        if not on_logits & parts.keys():
            idle.append(student.output)
            head = student.head
            idle += [] if head is None else [each for each in (head.weight, head.bias) if each is not None]
        return tied(parts, idle)

    def _check_phase(self, phase: str) -> None:
        phases = [each for stage in self.stages for each in stage.phases]
        if phase not in phases:
            known = "one phase, 'train'" if len(phases) == 1 else f"the phases {phases}"
            raise ValueError(f"offline has {known}, got {phase!r}")

    def _apply(self, fn: Any, recurse: bool = True) -> Offline:
        """Move or cast the teacher along with the rest."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if isinstance(self.teacher, nn.Module):
            self.teacher._apply(fn, recurse)
        return self
