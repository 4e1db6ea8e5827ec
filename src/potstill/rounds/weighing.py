"""``potstill run RECIPE --only importance``: how much parts matter, and what removing more costs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from potstill.files import write_json
from potstill.prune.choice import Chooser
from potstill.prune.groups import Group, Plan, Structure
from potstill.prune.importance import mean_loss
from potstill.prune.settling import settled
from potstill.prune.store import Scores
from potstill.prune.surgery import cut
from potstill.report import render_importance
from potstill.rounds.deciding import Decider

__all__ = ["weigh"]

SHARES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.65)
BINS = 12
"""Columns of the picture where a layer has more units than that."""


def weigh(decider: Decider) -> Path:
    """Score the original, measure the loss along each axis, and draw the page.

    Returns:
        ``importance/importance.html`` in the run folder; beside it stand the scores, which the run reads
        again, and ``importance.json``.
    """
    decider.echo("importance: scoring")
    structure = decider.structure
    scores = decider.scores(decider.original, structure)
    axes = {group.axis for group in structure.groups}
    found: dict[str, Any] = {
        "importance": decider.config.importance,
        "layer_importance": decider.config.layer_importance,
        "calibration": decider.losses.rows,
        "blocks": {name: scores.blocks[name] for name in structure.blocks},
        "units": {axis: _rows(structure, scores, axis) for axis in sorted(axes)},
        "curves": {},
    }
    for axis in (*(["layers"] if structure.blocks else []), *sorted(axes)):
        decider.echo(f"importance: loss against the share of {axis} removed")
        found["curves"][axis] = _curve(decider, scores, axis)
    folder = decider.folder.importance
    write_json(folder / "importance.json", found)
    return render_importance(folder)


def _curve(decider: Decider, scores: Scores, axis: str) -> list[tuple[float, float]]:
    """Shares of one axis that are removed, the least first, and the loss without them, untrained."""
    whole = decider.structure
    groups = tuple(group for group in whole.groups if group.axis == axis)
    alone = replace(whole, groups=groups, blocks=whole.blocks if axis == "layers" else ())
    config = replace(decider.config, keep=0.0)
    chooser = Chooser(decider.original, alone, scores, decider.gauge, config)
    points: dict[float, float] = {}
    for share in SHARES:
        plan, gone = _least(chooser, alone, share)
        if gone not in points:
            model = settled(cut(decider.original, plan, alone), decider.losses)
            points[gone] = mean_loss(model, decider.losses)
    return sorted(points.items())


def _least(chooser: Chooser, alone: Structure, share: float) -> tuple[Plan, float]:
    """The plan that removes about a share of the axis, and the share that it removes."""
    if alone.blocks:
        depth = min(round(share * len(alone.blocks)), chooser.most_blocks)
        return chooser.plan(depth, 0), depth / len(alone.blocks)
    units = sum(group.units for group in alone.groups)
    plan = chooser.plan(0, round(share * chooser.most_steps))
    return plan, sum(map(len, plan.units.values())) / units


def _rows(structure: Structure, scores: Scores, axis: str) -> list[dict[str, Any]]:
    """A row a layer (or group of channels): the scores of its heads, or means over its sorted units."""
    rows: dict[str, list[float]] = {}
    for group in structure.groups:
        if group.axis == axis:
            rows.setdefault(_home(group, structure), []).extend(scores.units[group.name].tolist())
    return [{"name": name, "scores": _few(values)} for name, values in rows.items()]


def _home(group: Group, structure: Structure) -> str:
    """The block that a group is part of, else its own name; heads of a layer stand together."""
    place = group.name.rpartition(".group")[0] or group.name
    return next((block for block in structure.blocks if group.within([block])), place)


def _few(values: list[float]) -> list[float]:
    if len(values) <= BINS:
        return values
    return [float(part.mean()) for part in np.array_split(np.sort(values), BINS)]
