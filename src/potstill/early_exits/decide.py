"""After training: thresholds with a promise, kept in the run folder, and what they do on other samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from potstill import distributed
from potstill.data import ImageSet
from potstill.data.dataset import Subset
from potstill.deploy.candidates import candidates, leave
from potstill.deploy.early_exit import EarlyExit, save_policy
from potstill.deploy.exit_runtime import KINDS
from potstill.deploy.guarantee import Choice, choose
from potstill.early_exits.costs import Costs, costs_of, make_runtime, time_against_whole, typical
from potstill.early_exits.figures import Answers, curve, exit_rows, leavers, reliability_bins, taken_row
from potstill.early_exits.parts import Parts, parts_of, seen_before
from potstill.early_exits.shifts import SHIFTS, Shifted
from potstill.errors import UserError
from potstill.experiment import Experiment
from potstill.folder import RunFolder
from potstill.measure import macs
from potstill.models.exits import WithExits
from potstill.models.weights import load_weights
from potstill.report.content import Bin
from potstill.report.samples import Leaver
from potstill.results.networks import ByExit, exit_logits
from potstill.schemes.settings import DeepSupervisionConfig

__all__ = ["EarlyExits", "decide"]

Logits = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class EarlyExits:
    """What was chosen and what it does.

    Attributes:
        figures: For ``result.json``.
        summary: In words.
        warnings: What a reader must not miss.
        leavers: Images that left at each exit.
        bins: Reliability of each exit by name, its temperature fitted.
    """

    figures: dict[str, Any]
    summary: str
    warnings: tuple[str, ...]
    leavers: tuple[Leaver, ...]
    bins: Mapping[str, tuple[Bin, ...]]


def decide(experiment: Experiment, folder: RunFolder, answers: ByExit) -> EarlyExits | None:
    """Choose thresholds, write ``early_exit.json``, and evaluate; every process must ask.

    Args:
        experiment: The loaded recipe.
        folder: Holds ``student.safetensors``.
        answers: What that network answers on the test part.

    Returns:
        What was found, on the main process and for a student with exits; else ``None``.

    Raises:
        UserError: If an exit gives NaN or infinite logits.
    """
    config = experiment.recipe.scheme
    if not isinstance(config, DeepSupervisionConfig):
        return None
    distributed.barrier()  # the main process writes the student's weights
    network = experiment.blank("student")
    assert isinstance(network, WithExits)
    load_weights(network, folder.student, folder.student.name)
    network = network.to(experiment.device).eval()
    if experiment.precision.channels_last:
        network = network.to(memory_format=torch.channels_last)
    parts = parts_of(config, experiment.splits)
    calibration, reporting = (
        _answers(part, _of(part, experiment, network, answers))
        for part in (parts.calibration, parts.reporting)
    )
    shifted = {
        shift: _answers(parts.reporting, exit_logits(experiment, network, Shifted(parts.reporting, shift)))
        for shift in (SHIFTS if config.shift else ())
    }
    if not distributed.is_main():
        return None
    runtime = make_runtime(network, experiment.example().tensor("student"))
    costs = costs_of(runtime, _inputs(experiment, parts.reporting, [0]))
    choices = {kind: _choose(config, kind, calibration, costs) for kind in KINDS}
    chosen = choices[config.policy]
    figures = {
        **_promise(config, chosen, parts, runtime.reason),
        **_figures(choices, calibration, reporting, costs, config),
        "chosen": _chosen(experiment, runtime, chosen, parts.reporting, reporting, costs),
        "shift": [_shift_row(name, chosen, answers, costs) for name, answers in shifted.items()],
    }
    promise = {key: figures[key] for key in ("wish", "promised", "confidence", "calibration", "note")}
    save_policy(folder.early_exit, chosen.policy, network, **promise)
    return EarlyExits(
        figures=figures,
        summary=_summary(chosen, figures),
        warnings=(*_warnings(chosen, figures, network.paths), *seen_before(config, experiment.recipe)),
        leavers=leavers(chosen.policy, reporting, parts.reporting),
        bins=reliability_bins(chosen.policy, reporting),
    )


def _of(part: ImageSet, experiment: Experiment, network: WithExits, answers: ByExit) -> ByExit:
    """The answers on a part: those on the test part are known."""
    if part is experiment.splits.test:
        return answers
    if isinstance(part, Subset) and part.whole is experiment.splits.test:
        return {name: logits[part.indices] for name, logits in answers.items()}
    return exit_logits(experiment, network, part)


def _answers(part: ImageSet, by_name: ByExit) -> Answers:
    for name, logits in by_name.items():
        if not np.isfinite(logits).all():
            raise UserError(f"exit '{name}'", "gives NaN or infinite logits; its thresholds mean nothing")
    return Answers(tuple(by_name), tuple(by_name.values()), part.labels.numpy())


def _inputs(experiment: Experiment, part: ImageSet, indices: Sequence[int]) -> torch.Tensor:
    """What the student sees of some samples."""
    return experiment.task.plain_batch(*part.__getitems__(indices)).tensor("student")


def _choose(config: DeepSupervisionConfig, kind: str, calibration: Answers, costs: Costs) -> Choice:
    """By multiply-adds for a stated loss: another run on another machine chooses the same."""
    loss, latency = config.wished_loss, config.max_latency_ms
    return choose(
        calibration.logits,
        calibration.labels,
        kind=kind,
        max_loss=loss,
        max_cost=latency,
        costs=costs.latency_ms if loss is None else costs.macs,
    )


def _promise(config: DeepSupervisionConfig, chosen: Choice, parts: Parts, reason: str) -> dict[str, Any]:
    wish = {"max_loss": config.wished_loss, "max_latency_ms": config.max_latency_ms}
    return {
        "policy": chosen.policy.to_json(),
        "wish": {key: value for key, value in wish.items() if value is not None},
        "promised": chosen.promised,
        "confidence": chosen.confidence,
        "note": chosen.note,
        "cannot_cut": reason,
        "calibration": {
            "part": parts.calibrated_on,
            "samples": len(parts.calibration),
            "tested": chosen.samples,
            "risk": chosen.risk,
        },
        "reporting": {"part": "test", "samples": len(parts.reporting)},
    }


def _figures(
    choices: Mapping[str, Choice],
    calibration: Answers,
    reporting: Answers,
    costs: Costs,
    config: DeepSupervisionConfig,
) -> dict[str, Any]:
    """Every exit by itself, every kind of policy at the same wish, and the curve of each kind."""
    by = costs.macs if config.wished_loss is not None else costs.latency_ms
    return {
        "exits": exit_rows(choices[config.policy].policy, reporting, costs),
        "policies": {
            kind: {
                **taken_row(choice.policy, reporting, costs),
                "policy": choice.policy.to_json(),
                "promised": choice.promised,
                "note": choice.note,
            }
            for kind, choice in choices.items()
        },
        "curves": {
            kind: curve(
                candidates(calibration.logits, calibration.labels, kind=kind, costs=by), reporting, costs
            )
            for kind in choices
        },
    }


def _chosen(
    experiment: Experiment,
    runtime: EarlyExit,
    choice: Choice,
    part: ImageSet,
    reporting: Answers,
    costs: Costs,
) -> dict[str, Any]:
    """The chosen policy on the reporting part, timed on images that leave as all of them do."""
    images = _inputs(experiment, part, typical(leave(choice.policy, reporting.logits)).tolist())
    return {
        **taken_row(choice.policy, reporting, costs),
        "whole_macs": macs(runtime.network.model, images[:1]),
        "timed": time_against_whole(runtime, choice.policy, images),
    }


def _shift_row(shift: str, choice: Choice, answers: Answers, costs: Costs) -> dict[str, Any]:
    row = taken_row(choice.policy, answers, costs)
    return {"name": shift, "what": SHIFTS[shift], **row, "kept": row["risk"] <= choice.promised}


def _summary(choice: Choice, figures: Mapping[str, Any]) -> str:
    chosen = figures["chosen"]
    times = ", ".join(
        f"{row['whole_over_early']:.2f}x at batch {size}" for size, row in chosen["timed"].items()
    )
    return (
        f"early exit by {choice.policy.kind}: {chosen['accuracy']:.2%} against {chosen['whole']:.2%} of the "
        f"whole network on {figures['reporting']['samples']} test images, {1 - chosen['shares'][-1]:.0%} "
        f"leave early; {times}; at most {100 * choice.promised:.2f} points lost with confidence "
        f"{choice.confidence:g}"
    )


def _warnings(choice: Choice, figures: Mapping[str, Any], paths: Sequence[str]) -> tuple[str, ...]:
    found = []
    ratios = [row["whole_over_early"] for row in figures["chosen"]["timed"].values()]
    if choice.note:
        found.append(f"early exit: {choice.note}")
    if figures["cannot_cut"]:
        found.append(
            f"early exit: the exits at {', '.join(paths)} save no time, the network is computed whole: it "
            f"cannot be cut, as {figures['cannot_cut']}"
        )
    elif ratios and max(ratios) <= 1:
        found.append("early exit: it saves no time here, the whole network is as quick at every batch size")
    return tuple(found)
