"""What generators make of a few test images, and how far from the reference that is, for the report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from potstill.batch import Batch
from potstill.experiment import Experiment
from potstill.report.samples import PictureRow, Sheet, picture
from potstill.results.outcome import Outcome
from potstill.tasks import ImageFromNoise, ImageToImage
from potstill.tasks.generated import answer

__all__ = ["drawn", "heat", "sheets"]

PLACES = {
    "The student's worst": 0.0,
    "Worse than three quarters": 0.25,
    "Its median": 0.5,
    "Better than three quarters": 0.75,
    "Its best": 1.0,
}
"""Which images are shown: their rank by the student's metric, 0 the worst."""
LARGEST = 512
COLUMNS, ROWS, PAIRS, GAP = 16, 4, 3, 1
"""Images of a sheet, pairs of noises between which it goes, and white pixels around each image."""
BRIGHTEST = 0.995
"""Of all differences of a row this share is drawn below the brightest colour."""
HEAT = np.array([(10, 8, 20), (84, 24, 92), (196, 62, 60), (248, 158, 50), (255, 246, 196)], dtype=float)


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
    found = {"input": batch.tensor("student")} | ({} if batch.target is None else {"truth": batch.target})
    found |= _answers(experiment, outcome, task, batch)
    images = {name: each.float().cpu() for name, each in found.items()}
    return tuple(
        _row(
            why,
            {name: each[number].numpy() for name, each in images.items()},
            {arm: float(value[place]) for arm, value in values.items()},
        )
        for number, (why, place) in enumerate(zip(PLACES, places, strict=True))
    )


@torch.no_grad()
def _answers(
    experiment: Experiment, outcome: Outcome, task: ImageToImage | ImageFromNoise, batch: Batch
) -> dict[str, Tensor]:
    """What each network answers, ``(N, C, H, W)`` in 0..1."""
    networks: dict[str, nn.Module] = {} if experiment.teacher is None else {"teacher": experiment.teacher}
    for arm, trained in outcome.arms.items():
        model = trained.cells[0].load(experiment.blank(arm), experiment.recipe.train.select)
        networks[arm] = model.to(experiment.device).eval()
    return {arm: answer(network, batch, arm) for arm, network in networks.items()}


def sheets(experiment: Experiment, outcome: Outcome) -> tuple[Sheet, ...]:
    """Real images, and what each network makes of the same noise and of what lies between two noises.

    They are the first of the test part; nobody picked them. Empty for tasks that make none of noise.
    """
    task, part = experiment.task, experiment.splits.test
    if not isinstance(task, ImageFromNoise):
        return ()
    batch = task.plain_batch(*part.__getitems__(list(range(min(COLUMNS * ROWS, len(part))))))
    assert batch.target is not None, "there are real images"
    noise = batch.tensor("student")
    pairs = min(PAIRS, len(noise) // 2)
    ends = noise[:pairs], noise[pairs : 2 * pairs]
    middle = torch.cat([between(one, other, COLUMNS) for one, other in zip(*ends, strict=True)])
    images = _answers(experiment, outcome, task, batch)
    strips = _answers(experiment, outcome, task, replace(batch, inputs={"student": middle}))
    made = (Sheet(name=arm, images=_sheet(images[arm]), between=_sheet(strips[arm])) for arm in images)
    return Sheet(name="real", images=_sheet(batch.target)), *made


def between(one: Tensor, other: Tensor, steps: int) -> Tensor:
    """Noises ``(steps, k)`` on the arc from one ``(k,)`` to another: as long as noise is, unlike a mean.

    >>> [round(float(each.norm()), 3) for each in between(torch.eye(2)[0], torch.eye(2)[1], 3)]
    [1.0, 1.0, 1.0]
    """
    share = torch.linspace(0.0, 1.0, steps, device=one.device)[:, None]
    cosine = torch.dot(one, other) / (one.norm() * other.norm()).clamp(min=1e-12)
    angle = cosine.clamp(-0.9999, 0.9999).arccos()
    found: Tensor = (((1 - share) * angle).sin() * one + (share * angle).sin() * other) / angle.sin()
    return found


def _sheet(images: Tensor) -> str:
    """Images ``(N, C, H, W)`` in 0..1 in rows of ``COLUMNS``, the last one filled up with white."""
    given = torch.nn.functional.pad(images.float().cpu(), (GAP, GAP, GAP, GAP), value=1.0)
    lacking = -len(given) % COLUMNS
    given = torch.cat([given, given.new_ones(lacking, *given.shape[1:])])
    count, channels, height, width = given.shape
    rows = given.reshape(count // COLUMNS, COLUMNS, channels, height, width).permute(2, 0, 3, 1, 4)
    sheet = rows.reshape(channels, count // COLUMNS * height, COLUMNS * width)
    return picture(_bytes(sheet.numpy()), max(sheet.shape[1:]))


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
    steps = np.linspace(0.0, 1.0, len(HEAT))
    channels = [np.interp(values, steps, HEAT[:, channel]) for channel in range(3)]
    return np.stack(channels).round().astype(np.uint8)
