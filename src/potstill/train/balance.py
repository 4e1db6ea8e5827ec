"""How hard each part of the loss pulls at the student: measured now and then, and weighed where asked.

The norm of a part's gradient by the student's own weights (no adapter's, no matcher's) is measured in
backward passes of its own, before the usual one, which stays what it is bit for bit. A term at ``weight:
auto`` runs at its default weight until it was measured; from then on its weight is fixed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from potstill import distributed
from potstill.batch import Share
from potstill.matching.objective import Objective, Term
from potstill.matching.terms import MEASURED_SHARE
from potstill.train.contract import Scheme
from potstill.train.observe import Row

__all__ = ["Balance", "Gradients"]

STEPS_A_PART = 40
"""Steps between measurements, for each part: a backward pass is at most two thirds of a step, so the
measuring takes at most 2 % of the time."""
LONGEST = 20
"""Measurements that decide a weight, at most."""
FURTHEST = 10.0
"""A chosen weight is at most this many times, and at least one by this many times, the default one."""


class Gradients:
    """Gradients of each part of one step, added up over its batches and all processes.

    Args:
        networks: By whose weights the parts are differentiated.
    """

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        self._parameters = [
            parameter for network in networks for parameter in network.parameters() if parameter.requires_grad
        ]
        self._sums: dict[str, list[Tensor]] = {}

    def add(self, parts: Mapping[str, Share], counts: Mapping[str, float]) -> None:
        """Differentiate the unweighted parts of one batch; the graph stays for the usual backward pass."""
        for name, part in parts.items():
            value = part.total / max(counts[name], 1.0)
            if not value.requires_grad:
                continue
            found = torch.autograd.grad(value, self._parameters, retain_graph=True, allow_unused=True)
            gradients = [
                torch.zeros_like(parameter) if gradient is None else gradient
                for gradient, parameter in zip(found, self._parameters, strict=True)
            ]
            if name in self._sums:
                torch._foreach_add_(self._sums[name], gradients)
            else:
                self._sums[name] = gradients

    def norms(self) -> dict[str, float]:
        """The norm of each part's gradient, the same on all processes."""
        if not self._sums:
            return {}
        found = []
        for gradients in self._sums.values():
            if distributed.world_size() > 1:
                flat = torch.cat([gradient.flatten().float() for gradient in gradients])
                gradients = [distributed.sum_tensor(flat)]
            found.append(torch.linalg.vector_norm(torch.stack([each.norm().double() for each in gradients])))
        return dict(zip(self._sums, torch.stack(found).tolist(), strict=True))


class Balance:
    """When gradients are measured, and what follows for terms at ``weight: auto``.

    Args:
        scheme: What is trained. ``auto`` needs its ``objective`` to name the parts as the scheme does.
        every: Steps between measurements, 0 for none but those that ``auto`` needs; ``None`` for as many
            as take at most 2 % of the time.
        total: Steps of the stage in which the terms are matched.

    Attributes:
        weights: The weights that were chosen, by term.
    """

    def __init__(self, scheme: Scheme, every: int | None, total: int) -> None:
        objective = getattr(scheme, "objective", None)
        self._networks = list(scheme.networks.values())
        self._objective: Objective | None = objective if isinstance(objective, Objective) else None
        self._every, self._total = every, total
        self._sums: dict[str, tuple[float, float]] = {}  # of each such term: its own norm, the labels'
        self.weights: dict[str, float] = {}

    def measuring(self, step: int, counts: Mapping[str, float]) -> Gradients | None:
        """What to measure with in step ``step`` of a stage, from 0; ``None`` where it is not its turn."""
        every = STEPS_A_PART * len(counts) if self._every is None else self._every
        regular = len(counts) > 1 and every > 0 and (step + 1) % every == 0
        deciding = any(step in self._window(term) for term in self._waiting() if term.name in counts)
        return Gradients(self._networks) if regular or deciding else None

    def _waiting(self) -> list[Term]:
        terms = [] if self._objective is None else self._objective.terms.values()
        return [term for term in terms if term.share is not None and term.name not in self.weights]

    def _window(self, term: Term) -> range:
        """The steps that decide: the second half of the first 2 % of the run, or of the term's window.

        A student that was cut from its teacher starts without a gradient, so the first steps say little.
        """
        begin = math.ceil(term.config.start * self._total - 1e-9)
        steps = max(1, math.ceil(MEASURED_SHARE * self._total - 1e-9))
        return range(begin + steps - min(math.ceil(steps / 2), LONGEST), begin + steps)

    def take(self, step: int, norms: Mapping[str, float], say: Callable[[str], None]) -> Iterator[Row]:
        """Hear the norms of step number ``step``, and choose the weights that are due after it.

        Args:
            step: Number of the step, from 0.
            norms: Of the unweighted parts.
            say: Hears a sentence for each weight that is chosen.

        Yields:
            A row of ``weights`` for each.
        """
        for term in self._waiting():
            window = self._window(term)
            if step in window and _measured(norms.get(term.name)) and _measured(norms.get("labels")):
                own, labels = self._sums.get(term.name, (0.0, 0.0))
                self._sums[term.name] = (own + norms[term.name], labels + norms["labels"])
            if step + 1 >= window.stop:
                say(self._choose(term, len(window)))
                yield {"weights": {term.name: self.weights[term.name]}}

    def _choose(self, term: Term, times: int) -> str:
        """Fix the weight of one term; the main process decides for all."""
        assert self._objective is not None, "a term was found"
        assert term.share is not None, "its weight is auto"
        own, labels = (total / times for total in self._sums.get(term.name, (0.0, 0.0)))
        default, reference = term.weight, labels * self._objective.labels
        wanted = term.share * reference / own if own > 0 and reference > 0 else default
        weight = min(max(wanted, default / FURTHEST), default * FURTHEST)
        weight = distributed.sum_floats({"weight": weight if distributed.is_main() else 0.0})["weight"]
        self.weights[term.name] = weight
        self._objective.settle(self.weights)
        return _sentence(term, weight, wanted, own, reference)

    def state(self) -> dict[str, Any]:
        """What a checkpoint needs."""
        return {"sums": dict(self._sums), "weights": dict(self.weights)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state` gave, with the weights that were chosen."""
        self._sums, self.weights = dict(state["sums"]), dict(state["weights"])
        if self._objective is not None:
            self._objective.settle(self.weights)


def _measured(norm: float | None) -> bool:
    return norm is not None and math.isfinite(norm)


def _sentence(term: Term, weight: float, wanted: float, own: float, reference: float) -> str:
    if own <= 0 or reference <= 0:
        lacking = f"it has no gradient at the student ({own:g})" if own <= 0 else "the labels have none"
        return f"{term.name}: weight {weight:g}, its default, as {lacking}"
    clamped = (
        ""
        if math.isclose(weight, wanted)
        else f" ({wanted:.3g} lies further than {FURTHEST:g} times off its default)"
    )
    return (
        f"{term.name}: weight {weight:.4g}{clamped}, chosen for {term.share:g} of the labels' gradient: norm "
        f"{own:.3g} unweighted, the labels' {reference:.3g} weighted"
    )
