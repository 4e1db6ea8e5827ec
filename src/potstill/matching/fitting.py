"""Adapters that start at the best linear map from the student's layers to the teacher's.

An adapter of random weights first asks the student for noise, and learns only as fast as the student that it
judges. One that starts at its least-squares fit asks at once for what no linear map of the layer gives.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import cast

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from potstill.batch import Batch
from potstill.errors import UserError
from potstill.matching.adapters import Adapter
from potstill.matching.layers import PlannedPair
from potstill.matching.taps import Tapped

__all__ = ["fit_adapters"]


@torch.no_grad()
def fit_adapters(
    plan: Sequence[PlannedPair],
    made: nn.ModuleDict,
    terms: Collection[str],
    student: nn.Module,
    teacher: nn.Module,
    example: Batch,
) -> list[PlannedPair]:
    """Start the adapters of ``terms`` at their least-squares fit to one batch.

    Both networks answer as they are; the student's batch norms by the batch, as in its first step. Neither is
    changed.

    Args:
        plan: The pairs of layers.
        made: Adapters by the pairs' keys; changed in place.
        terms: Names of the terms whose adapters are fitted.
        student: The bare student.
        teacher: The bare teacher.
        example: What both see; the more samples, the better the fit.

    Returns:
        The plan, whose descriptions of fitted adapters say how much they explain.

    Raises:
        UserError: If the batch has fewer positions than a layer has channels.
    """
    wanted = [pair for pair in plan if pair.term in terms and pair.key in made]
    if not wanted:
        return list(plan)
    twin = copy.deepcopy(student).eval()
    for module in twin.modules():
        if isinstance(module, _BatchNorm):
            module.train()
    ours = Tapped(twin, [pair.student for pair in wanted], role="student")(example.input("student")).taps
    theirs = Tapped(teacher, [pair.teacher for pair in wanted], role="teacher")
    targets = theirs(example.input("teacher")).taps
    theirs.remove()
    told: dict[str, str] = {}
    for pair in wanted:
        adapter = cast(Adapter, made[pair.key])
        try:
            explained = adapter.fit(ours[pair.student], targets[pair.teacher], example.tokens("student"))
        except ValueError as error:
            raise UserError(f"distill.{pair.term}.adapter", f"'{pair.student}': {error}") from error
        told[pair.key] = f"{pair.adapter}, fitted (explains {explained:.0%} before the first step)"
    return [replace(pair, adapter=told.get(pair.key, pair.adapter)) for pair in plan]
