"""What generators make of a few test images, and how far from the reference that is, for the report."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from potstill.batch import Batch
from potstill.experiment import Experiment
from potstill.outcome import Outcome
from potstill.report.content import PictureRow, picture
from potstill.tasks import ImageToImage

__all__ = ["drawn", "heat"]

PLACES = {
    "The student's worst": 0.0,
    "Worse than three quarters": 0.25,
    "Its median": 0.5,
    "Better than three quarters": 0.75,
    "Its best": 1.0,
}
"""Which images are shown: their rank by the student's metric, 0 the worst."""
LARGEST = 512
BRIGHTEST = 0.995
"""Of all differences of a row this share is drawn below the brightest colour."""
COLOURS = np.array([(10, 8, 20), (84, 24, 92), (196, 62, 60), (248, 158, 50), (255, 246, 196)], dtype=float)


def drawn(experiment: Experiment, outcome: Outcome) -> tuple[PictureRow, ...]:
    """Rows of pictures, picked by rank and not by hand; none for tasks that make no images."""
    task, part = experiment.task, experiment.splits.test
    if not isinstance(task, ImageToImage):
        return ()
    values: dict[str, NDArray[np.float64]] = {
        arm: task.per_sample(found.selected, part)[0] for arm, found in outcome.arms.items()
    }
    if outcome.teacher is not None and task.has_truth:
        values["teacher"] = task.per_sample(outcome.teacher, part)
    order = np.argsort(values["student"], kind="stable")
    places = [int(order[round(share * (len(order) - 1))]) for share in PLACES.values()]
    batch = task.plain_batch(*part.__getitems__(places))
    images = _images(experiment, outcome, task, batch)
    return tuple(
        _row(
            why,
            {name: each[number].numpy() for name, each in images.items()},
            {arm: float(value[place]) for arm, value in values.items()},
        )
        for number, (why, place) in enumerate(zip(PLACES, places, strict=True))
    )


@torch.no_grad()
def _images(experiment: Experiment, outcome: Outcome, task: ImageToImage, batch: Batch) -> dict[str, Tensor]:
    """Input, truth where there is one, and what each network answers, ``(N, C, H, W)`` in 0..1."""
    networks: dict[str, nn.Module] = {} if experiment.teacher is None else {"teacher": experiment.teacher}
    for arm, trained in outcome.arms.items():
        model = trained.cells[0].load(experiment.blank(arm), experiment.recipe.train.select)
        networks[arm] = model.to(experiment.device).eval()
    found = {"input": batch.tensor("student")} | ({} if batch.target is None else {"truth": batch.target})
    found |= {arm: task.answer(network, batch, arm) for arm, network in networks.items()}
    return {name: images.float().cpu() for name, images in found.items()}


def _row(why: str, images: Mapping[str, NDArray[np.float32]], values: Mapping[str, float]) -> PictureRow:
    reference = images["truth"] if "truth" in images else images["teacher"]
    apart = {arm: np.abs(images[arm] - reference).mean(axis=0) for arm in values}
    brightest = max(float(np.quantile(np.stack(list(apart.values())), BRIGHTEST)), 1 / 255)
    return PictureRow(
        why=why,
        images={name: picture(_bytes(image), LARGEST) for name, image in images.items()},
        differences={arm: picture(heat(each / brightest), LARGEST) for arm, each in apart.items()},
        brightest=brightest,
        values=values,
    )


def _bytes(image: NDArray[np.float32]) -> NDArray[np.uint8]:
    return (image * 255).round().clip(0, 255).astype(np.uint8)


def heat(values: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Colours ``(3, H, W)`` of values ``(H, W)``: dark at 0, glowing at 1 and above.

    >>> heat(np.array([[0.0, 1.0]])).transpose(1, 2, 0).tolist()
    [[[10, 8, 20], [255, 246, 196]]]
    """
    steps = np.linspace(0.0, 1.0, len(COLOURS))
    channels = [np.interp(values, steps, COLOURS[:, channel]) for channel in range(3)]
    return np.stack(channels).round().astype(np.uint8)
