"""What a generator's image is worth beside its reference: an answer's columns, their figures and gains.

An answer is a row: PSNR, SSIM and perceptual distance to the reference, then the features of the image and
those of its reference, where there is a network to see them with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from potstill.metrics import resemblance
from potstill.metrics.frechet import frechet_figures
from potstill.metrics.verdict import compare, mean_interval
from potstill.models.perception import Perception, averaged
from potstill.tasks.contract import Answers

__all__ = ["DISTANCE", "LEAST_SET", "PSNR", "SSIM", "figures", "gains", "means", "row"]

PSNR, SSIM, DISTANCE, MEASURES = 0, 1, 2, 3
"""Columns of an answer."""
LEAST_SET = 6
"""Images from which on a kernel distance is told: of fewer, a bootstrap often draws one image alone."""

Floats = NDArray[np.float64]


def row(images: Tensor, references: Tensor, eyes: Perception | None) -> Tensor:
    """Answers ``(N, 3 + 2F)``, float32 on the CPU, of images ``(N, C, H, W)`` in 0..1.

    Args:
        images: What a generator made.
        references: What it should have made.
        eyes: By which features they are compared; without them distance and features are left out.

    >>> row(torch.full((1, 3, 16, 16), 0.6), torch.full((1, 3, 16, 16), 0.5), None).round(decimals=2).tolist()
    [[20.0, 0.9800000190734863, 0.0]]
    """
    columns = [resemblance.psnr(images, references), resemblance.ssim(images, references)]
    if eyes is None:
        return torch.stack([*columns, torch.zeros_like(columns[0])], dim=1).cpu()
    seen, wanted = eyes(images), eyes(references)
    columns.append(resemblance.perceptual_distance(seen, wanted))
    vectors = [averaged(maps[-1]) for maps in (seen, wanted)]
    return torch.cat([torch.stack(columns, dim=1), *vectors], dim=1).float().cpu()


def means(answers: Tensor) -> dict[str, float]:
    """Means over the images of answers ``(N, k)``."""
    found = answers[:, :MEASURES].double().mean(dim=0).tolist()
    return dict(zip(("psnr", "ssim", "perceptual"), found, strict=True))


def figures(answers: Answers, features: str | None) -> dict[str, Any]:
    """SSIM, perceptual, kernel and (of many images) Fréchet distance, with intervals, and by whose features.

    Args:
        answers: ``(seeds, N, k)``.
        features: Name of the network that saw the images; ``None`` where none did.
    """
    found: dict[str, Any] = {"ssim": float(answers[..., SSIM].mean())}
    found["ssim_interval"] = list(mean_interval(answers[..., SSIM]))
    if features is not None:
        found["perceptual"] = float(answers[..., DISTANCE].mean())
        found["perceptual_interval"] = list(mean_interval(answers[..., DISTANCE]))
        found["features"] = features
    if features is not None and answers.shape[1] >= LEAST_SET:
        measure = _kernel_measure(answers)
        found["kid"] = float(measure(np.ones((1, answers.shape[1])))[0])
        found["kid_interval"] = list(resemblance.bootstrap(measure, answers.shape[1]))
        found |= frechet_figures(*_features(answers))
    return found


def gains(student: Answers, control: Answers, features: str | None) -> dict[str, Any]:
    """By how much the student is better in all but the metric.

    Args:
        student: ``(seeds, N, k)``.
        control: The same of the control.
        features: Name of the network that saw the images; ``None`` where none did.

    Returns:
        ``ssim``, ``perceptual`` and, of 6 images and more, ``kid``, each with ``gain`` (positive where the
        student is better), ``interval`` and ``verdict``.
    """
    found: dict[str, Any] = {}
    measured = [("ssim", SSIM, 1.0), ("perceptual", DISTANCE, -1.0)]
    for name, column, sign in measured if features is not None else measured[:1]:
        verdict = compare(*(sign * arm[..., column].astype(np.float64) for arm in (student, control)))
        found[name] = {"gain": verdict.gain, "interval": list(verdict.interval), "verdict": verdict.verdict}
    if features is not None and student.shape[1] >= LEAST_SET:
        ours, theirs = _kernel_measure(student), _kernel_measure(control)
        low, high = resemblance.bootstrap(lambda counts: theirs(counts) - ours(counts), student.shape[1])
        once = np.ones((1, student.shape[1]))
        sided = "better" if low > 0 else "worse" if high < 0 else "same"
        gain = float((theirs(once) - ours(once))[0])
        found["kid"] = {"gain": gain, "interval": [low, high], "verdict": sided}
    return found


def _features(answers: Answers) -> tuple[Answers, Answers]:
    """Features of the images and of their references, each ``(seeds, N, F)``."""
    width = (answers.shape[-1] - MEASURES) // 2
    return answers[..., MEASURES : MEASURES + width], answers[..., MEASURES + width :]


def _kernel_measure(answers: Answers) -> Callable[[Floats], Floats]:
    """The kernel distance over seeds, ``(D,)``, for rows of counts ``(D, N)``."""
    own, wanted = _features(answers)

    def each(counts: Floats) -> Iterator[Floats]:
        for images, references in zip(own, wanted, strict=True):
            yield resemblance.discrepancies(images, references, counts)

    def measure(counts: Floats) -> Floats:
        found: Floats = np.mean(list(each(counts)), axis=0)
        return found

    return measure
