"""Figures of early exits from the answers of all exits: accuracy, shares, cost, calibration, examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from potstill.data import ImageSet
from potstill.deploy.candidates import leave
from potstill.deploy.exit_runtime import Policy
from potstill.early_exits.costs import Costs
from potstill.metrics import quality
from potstill.report.content import Bin
from potstill.report.evidence import arm_detail
from potstill.report.samples import Leaver, picture

__all__ = ["Answers", "curve", "exit_rows", "leavers", "reliability_bins", "taken_row"]

CURVE_POINTS = 40
SHOWN = 8  # images of each exit


@dataclass(frozen=True)
class Answers:
    """What all exits answer to one part of the data.

    Attributes:
        names: Of the exits in order, the whole network last.
        logits: Of each, ``(N, C)``.
        labels: ``(N,)``.
    """

    names: tuple[str, ...]
    logits: tuple[NDArray[np.float32], ...]
    labels: NDArray[np.int64]

    @property
    def right(self) -> NDArray[np.bool_]:
        """Whether each exit is right, ``(exits, N)``."""
        return np.stack([each.argmax(axis=1) == self.labels for each in self.logits])


def taken_row(policy: Policy, answers: Answers, costs: Costs) -> dict[str, Any]:
    """What a policy does: accuracy, what it loses, shares by exit, mean cost.

    ``lost`` is the difference of accuracies; ``risk``, never less, the share of samples where the whole
    network is right and the exit that is taken wrong. Times are the shares times the time up to each exit.
    """
    taken = leave(policy, answers.logits)
    right = answers.right
    early, whole = right[taken, np.arange(len(taken))], right[-1]
    return {
        "accuracy": float(early.mean()),
        "whole": float(whole.mean()),
        "lost": float(whole.mean() - early.mean()),
        "risk": float((whole & ~early).mean()),
        "shares": (np.bincount(taken, minlength=len(right)) / len(taken)).tolist(),
        "macs": float(np.asarray(costs.macs)[taken].mean()),
        "latency_ms": float(np.asarray(costs.latency_ms)[taken].mean()),
    }


def curve(policies: Sequence[Policy], answers: Answers, costs: Costs) -> list[dict[str, float]]:
    """Accuracy and mean cost of policies, from nobody leaving to everybody, thinned evenly."""
    places = np.unique(np.linspace(0, len(policies) - 1, CURVE_POINTS).round().astype(int))
    rows = [taken_row(policies[place], answers, costs) for place in places.tolist()]
    return [{key: row[key] for key in ("accuracy", "macs", "latency_ms")} for row in rows]


def exit_rows(policy: Policy, answers: Answers, costs: Costs) -> list[dict[str, Any]]:
    """Each exit by itself, and of the samples that ``policy`` lets leave there."""
    taken = leave(policy, answers.logits)
    right = answers.right
    rows = []
    for number, (name, logits) in enumerate(zip(answers.names, answers.logits, strict=True)):
        mine, temperature = taken == number, policy.temperatures[number]
        rows.append(
            {
                "name": name,
                "accuracy": float(right[number].mean()),
                "share": float(mine.mean()),
                "accuracy_of_leavers": float(right[number][mine].mean()) if mine.any() else None,
                "macs": costs.macs[number],
                "latency_ms": costs.latency_ms[number],
                "temperature": temperature,
                "ece": quality.calibration(quality.softmax(logits), answers.labels).ece,
                "ece_calibrated": quality.calibration(
                    quality.softmax(logits, temperature), answers.labels
                ).ece,
            }
        )
    return rows


def reliability_bins(policy: Policy, answers: Answers) -> Mapping[str, tuple[Bin, ...]]:
    """The reliability diagram of each exit, its logits over its temperature."""
    return {
        name: arm_detail((logits / temperature)[None], answers.labels).bins
        for name, logits, temperature in zip(answers.names, answers.logits, policy.temperatures, strict=True)
    }


def leavers(policy: Policy, answers: Answers, part: ImageSet) -> tuple[Leaver, ...]:
    """The first few images of each class in turn that left at each exit: picked by rule, not by hand."""
    taken = leave(policy, answers.logits)
    found = []
    for number, (name, logits) in enumerate(zip(answers.names, answers.logits, strict=True)):
        probabilities = quality.softmax(logits, policy.temperatures[number])
        for index in _in_turn(np.flatnonzero(taken == number), answers.labels)[:SHOWN]:
            answer = int(logits[index].argmax())
            found.append(
                Leaver(
                    image=picture(part.images([index])[0].numpy()),
                    label=part.class_names[int(answers.labels[index])],
                    exit=name,
                    answer=part.class_names[answer],
                    confidence=float(probabilities[index, answer]),
                )
            )
    return tuple(found)


def _in_turn(indices: NDArray[np.int64], labels: NDArray[np.int64]) -> list[int]:
    """The first sample of each class, then the second of each, and so on."""
    seen: dict[int, int] = {}
    ranked = []
    for index in indices.tolist():
        label = int(labels[index])
        ranked.append((seen.setdefault(label, 0), index))
        seen[label] += 1
    return [index for _, index in sorted(ranked)]
