"""Where the hints of a detector are taken: test images, bright where maps are compared."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from potstill.batch import Batch, Signals
from potstill.data.boxes import BoxSet
from potstill.experiment import Experiment
from potstill.losses.regions import inside_boxes, region_weights
from potstill.matching.detected import shown_boxes
from potstill.matching.taps import Tapped
from potstill.matching.terms import Term
from potstill.report.scenes import Hint, photograph
from potstill.tasks import Detection

__all__ = ["hints"]

DIM = 0.3
"""Brightness where nothing is compared."""


def hints(experiment: Experiment, images: Sequence[int]) -> tuple[Hint, ...]:
    """Pictures of where each term that compares maps by region looks, for the report.

    Args:
        experiment: The loaded recipe; other tasks have no such terms.
        images: Positions in the test part.
    """
    task, part = experiment.task, experiment.splits.test
    if not isinstance(task, Detection) or experiment.teacher is None or not len(images):
        return ()
    objective = experiment.scheme("student", experiment.recipe.seed).objective
    terms = {name: term for name, term in objective.terms.items() if "regions" in term.options}
    plan = [(terms[pair.term], pair.teacher) for pair in objective.plan if pair.term in terms]
    if not plan:
        return ()
    batch = task.plain_batch(*part.__getitems__(list(images)))
    tapped = Tapped(experiment.teacher, [path for _, path in plan], role="teacher").eval()
    with torch.no_grad():
        answer: Signals = tapped(batch.input("teacher"))
    return tuple(_drawn(plan, answer, batch, part, images))


def _drawn(
    plan: Sequence[tuple[Term, str]], answer: Signals, batch: Batch, part: BoxSet, images: Sequence[int]
) -> Iterator[Hint]:
    inputs = batch.input("teacher")
    assert isinstance(inputs, dict), "a detector takes tensors by name"
    assert batch.target is not None, "images come with boxes"
    height, width = inputs["images"].shape[2:]
    size = torch.tensor([width, height], dtype=torch.float32, device=answer.output.device)
    teacher = Signals(answer.output, {"answers": answer.output, "size": size})
    weighed = []
    for term, path in plan:
        maps, boxes = answer.taps[path].float(), shown_boxes(term, teacher, batch)
        weighed.append(region_weights(boxes, maps, term.options["regions"], term.options["background"]))
    for row, at in enumerate(images):
        for (term, path), weights in zip(plan, weighed, strict=True):
            front = inside_boxes(batch.target, *weights.shape[1:])
            total = float(weights[row].sum())
            picture, shown = photograph(_lit(part, at, weights[row]))
            yield Hint(
                image=picture,
                size=shown,
                term=term.name,
                layer=path,
                grid=(weights.shape[1], weights.shape[2]),
                covered=float(front[row].float().mean()),
                weight=float(weights[row][front[row]].sum()) / total if total else 0.0,
            )


def _lit(part: BoxSet, at: int, weights: Tensor) -> NDArray[np.uint8]:
    """The image, dark and grey where a place weighs little."""
    image = part.__getitems__([at])[0].float()
    light = (weights / weights.max().clamp_min(1e-12)).cpu()[None, None]
    light = torch.nn.functional.interpolate(light, size=image.shape[2:], mode="nearest")
    grey = image.mean(dim=1, keepdim=True).expand_as(image) * DIM
    mixed: NDArray[np.uint8] = (image * light + grey * (1 - light)).round().to(torch.uint8)[0].numpy()
    return mixed
