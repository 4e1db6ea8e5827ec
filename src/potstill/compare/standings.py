"""Who came where: each method against the control, and how far the order can be trusted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from potstill.compare.lineup import CONTROL
from potstill.compare.place import Job, Place
from potstill.compare.tables import text_table
from potstill.experiment import Experiment
from potstill.metrics.verdict import compare, mean_interval
from potstill.results.outcome import Shared

__all__ = ["Comparison", "Scores", "ranking_trust", "scores_of", "standings"]

Scores = NDArray[np.float64]
"""Of each seed and test sample, ``(S, N)``: 1 where it was right."""

ONE_SEED = (
    "one seed: the spread between runs was not measured, so there is no verdict; give --seeds 2 or more"
)


@dataclass(frozen=True)
class Comparison:
    """What a comparison found out.

    Attributes:
        folder: Its folder.
        data: The contents of ``comparison.json``; empty after an interruption.
        interrupted: The user stopped it; the same command goes on.
        scores: Which test samples each method that did not fail, and the control, had right.
        shared: What was found out of teacher and student as networks, where it was needed.
    """

    folder: Path
    data: dict[str, Any]
    interrupted: bool = False
    scores: Mapping[str, Scores] = field(default_factory=dict)
    shared: Shared | None = None

    @property
    def failed(self) -> list[str]:
        """Methods that could not be trained."""
        return [row["method"] for row in self.data.get("methods", []) if row["status"] == "failed"]

    @property
    def page(self) -> Path:
        """The page to look at."""
        return Place(self.folder).table("html")

    def table(self) -> str:
        """The methods as a table of text, the best first."""
        return text_table(self.data) if self.data else ""


def scores_of(experiment: Experiment, place: Place, method: str, seeds: Sequence[int]) -> Scores:
    """Which test samples a method's selected weights have right."""
    select = experiment.recipe.train.select
    found = [np.load(place.cell(Job(method, seed)) / f"test-{select}.npy") for seed in seeds]
    return experiment.task.per_sample(np.stack(found), experiment.splits.test)


def standings(
    experiment: Experiment,
    place: Place,
    methods: Sequence[str],
    seeds: Sequence[int],
    failed: Mapping[str, str],
    scores: Mapping[str, Scores],
) -> dict[str, Any]:
    """The rows of a comparison, the greatest gain first and what failed last.

    Args:
        experiment: The loaded recipe.
        place: Where the finished cells are.
        methods: All methods.
        seeds: The seeds of every method.
        failed: Messages of the methods that failed.
        scores: Those of the control and of all that did not fail.
    """
    control = scores[CONTROL]
    rows = [
        _failed(method, failed[method])
        if method in failed
        else _row(place, method, seeds, scores[method], control)
        for method in methods
    ]
    rows.sort(key=lambda row: -(row["gain"] if row["gain"] is not None else -np.inf))
    ranked = np.array([row["per_seed"] for row in rows if row["status"] == "done"])
    return {
        "metric": experiment.task.metric,
        "higher_is_better": experiment.task.higher_is_better,
        "selected": experiment.recipe.train.select,
        "seeds": list(seeds),
        "test_samples": len(experiment.splits.test),
        "control": _row(place, CONTROL, seeds, control, control),
        "methods": rows,
        "ranking": ranking_trust(ranked),
    }


def _failed(method: str, message: str) -> dict[str, Any]:
    empty = dict.fromkeys(
        (
            "mean",
            "spread",
            "mean_interval",
            "gain",
            "interval",
            "verdict",
            "seconds_per_step",
            "peak_memory_bytes",
        )
    )
    return {
        "method": method,
        "status": "failed",
        "reason": message,
        **empty,
        "per_seed": [],
        "gain_per_seed": [],
        "steps": None,
        "report": None,
        "cells": [],
    }


def _row(
    place: Place,
    method: str,
    seeds: Sequence[int],
    right: Scores,
    control: Scores,
) -> dict[str, Any]:
    """One method; the control's own row has no gain."""
    per_seed = right.mean(axis=1)
    cells = [_cell(place, Job(method, seed)) for seed in seeds]
    row: dict[str, Any] = {
        "method": method,
        "status": "done",
        "reason": "",
        "mean": float(per_seed.mean()),
        "spread": float(per_seed.std(ddof=1)) if len(seeds) > 1 else None,
        "mean_interval": list(mean_interval(right)),
        "gain": None,
        "interval": None,
        "verdict": None,
        "seconds_per_step": float(np.mean([cell["seconds_per_step"] for cell in cells])),
        "peak_memory_bytes": max(cell["peak_memory_bytes"] for cell in cells),
        "per_seed": per_seed.tolist(),
        "gain_per_seed": (per_seed - control.mean(axis=1)).tolist(),
        "steps": cells[0]["steps"],
        "report": None,
        "cells": cells,
    }
    if method == CONTROL:
        return row
    found = compare(right, control)
    row |= {"gain": found.gain, "interval": list(found.interval), "report": f"methods/{method}/report.html"}
    several = len(seeds) > 1
    return row | {
        "verdict": found.verdict if several else None,
        "reason": found.reason if several else ONE_SEED,
    }


def _cell(place: Place, job: Job) -> dict[str, Any]:
    figures, folder = place.figures(job), place.cell(job)
    return {
        "seed": job.seed,
        **{
            name: figures[name] for name in ("last", "best", "steps", "seconds_per_step", "peak_memory_bytes")
        },
        "metrics": (folder / "metrics.jsonl").relative_to(place.path).as_posix(),
    }


def ranking_trust(scores: ArrayLike) -> dict[str, Any]:
    """How well the seeds agree on the order of the methods.

    Formula: ``r = mean over pairs of seeds of Spearman's rank correlation``; the order by the mean of ``S``
    seeds would correlate with that of ``S`` other seeds by about ``S r / (1 + (S - 1) r)``.

    Args:
        scores: ``(methods, seeds)``; the control is not among them.

    Returns:
        ``between_seeds``, ``of_means`` (``None`` where they cannot be known) and ``words``.

    Reference:
        Spearman, "The Proof and Measurement of Association between Two Things" (1904),
        https://doi.org/10.2307/1412159; Spearman, "Correlation Calculated from Faulty Data" (1910),
        https://doi.org/10.1111/j.2044-8295.1910.tb00206.x

    Example:
        >>> found = ranking_trust([[0.1, 0.1], [0.2, 0.3], [0.3, 0.2]])
        >>> found["between_seeds"], round(found["of_means"], 3)
        (0.5, 0.667)
    """
    values = np.asarray(scores, dtype=np.float64)
    if values.ndim != 2 or values.shape[0] < 3 or values.shape[1] < 2:
        words = "Whether the order can be trusted is not known: it takes at least 3 methods and 2 seeds."
        return {"between_seeds": None, "of_means": None, "words": words}
    from scipy.stats import rankdata

    ranks = rankdata(values, axis=0)
    if (ranks.std(axis=0) == 0).any():
        words = "In at least one seed all methods came out equal: there is no order to trust."
        return {"between_seeds": None, "of_means": None, "words": words}
    seeds = values.shape[1]
    correlations = np.asarray(np.corrcoef(ranks.T))
    pairs = correlations[np.triu_indices(seeds, 1)]
    between = round(float(pairs.mean()), 12)
    means = seeds * between / (1 + (seeds - 1) * between) if between > 0 else 0.0
    return {"between_seeds": between, "of_means": means, "words": _words(between, means)}


def _words(between: float, means: float) -> str:
    judged = (
        "the order would come out much the same again"
        if means >= 0.8
        else "top and bottom would come out again, neighbours would change places"
        if means >= 0.5
        else "the order is mostly chance: do not choose by it"
    )
    return (
        f"Two seeds rank the methods with a Spearman correlation of {between:.2f} on average, and so the "
        f"order by the means over seeds with about {means:.2f}: {judged}."
    )
