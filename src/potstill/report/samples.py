"""Single samples on the page: what networks answer to them, where they leave, and their pictures.

Plain values like all of ``report.json``; pictures are ``data:`` URIs.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Answer", "Guess", "Leaver", "PictureRow", "Sample", "Sheet", "picture"]

LARGEST_SIDE = 128


@dataclass(frozen=True, kw_only=True)
class Guess:
    """One class that a network considers, with its probability."""

    name: str
    probability: float


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What one arm answers to one sample.

    Attributes:
        arm: ``teacher``, ``control`` or ``student``.
        plain: Its top classes at temperature 1.
        soft: Its top classes at the training temperature; empty where that is 1.
    """

    arm: str
    plain: tuple[Guess, ...]
    soft: tuple[Guess, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One test sample and what the arms answer.

    Attributes:
        image: A ``data:`` URI of a PNG, from :func:`picture`; empty for other samples.
        text: The sample itself, where it is a text.
        index: Position in the test part.
        label: Its true class.
        why: Why it is shown ("only the student is right").
        answers: One answer an arm.
    """

    image: str = ""
    text: str = ""
    index: int
    label: str
    why: str
    answers: tuple[Answer, ...]


@dataclass(frozen=True, kw_only=True)
class Leaver:
    """One test image that left a network with early exits.

    Attributes:
        image: A ``data:`` URI of a PNG, from :func:`picture`.
        label: Its true class.
        exit: Where it left.
        answer: The class that this exit gave it.
        confidence: The exit's calibrated probability of that class.
    """

    image: str
    label: str
    exit: str
    answer: str
    confidence: float


@dataclass(frozen=True, kw_only=True)
class PictureRow:
    """One test image and what generators make of it; pictures are ``data:`` URIs.

    Attributes:
        why: Why it is shown ("the student's worst").
        images: By ``input``, ``truth`` (where the data has it) and arm.
        differences: How far each arm is from the reference, pixel by pixel, by arm.
        brightest: The difference that is drawn brightest, 0 to 1.
        values: The metric of each arm.
    """

    why: str
    images: Mapping[str, str]
    differences: Mapping[str, str]
    brightest: float
    values: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """Many small images in rows, as one picture; pictures are ``data:`` URIs.

    Attributes:
        name: ``real`` or the arm that made them; at one place stands the same noise in every arm's.
        images: The picture.
        between: What lies between pairs of noises, a row a pair; empty of real images.
    """

    name: str
    images: str
    between: str = ""


def picture(image: NDArray[np.generic], side: int = LARGEST_SIDE) -> str:
    """A ``data:`` URI of one image, its longer side shrunk to at most ``side`` pixels.

    Small ones are PNG; larger ones are WebP, at a quality that hides nothing at the eye's distance.

    Args:
        image: ``(C, H, W)``, uint8, or floats that are stretched from their least to their greatest value;
            with other than 1 or 3 channels the first is drawn.
        side: Of the largest picture.

    Raises:
        ValueError: If ``image`` has not three dimensions.

    Example:
        >>> picture(np.zeros((1, 8, 8), dtype=np.uint8))[:22]
        'data:image/png;base64,'
    """
    from PIL import Image

    if image.ndim != 3:
        raise ValueError(f"expected an image (C, H, W), got {image.shape}")
    values = image if image.dtype == np.uint8 else _stretched(image.astype(np.float64))
    pixels = values.transpose(1, 2, 0) if values.shape[0] == 3 else values[0]
    drawn = Image.fromarray(np.ascontiguousarray(pixels))
    drawn.thumbnail((side, side))
    buffer = io.BytesIO()
    form, how = ("PNG", {"optimize": True}) if max(drawn.size) <= LARGEST_SIDE else ("WEBP", {"quality": 92})
    drawn.save(buffer, format=form, **how)
    return f"data:image/{form.lower()};base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _stretched(image: NDArray[np.float64]) -> NDArray[np.uint8]:
    low, high = float(image.min()), float(image.max())
    return ((image - low) / max(high - low, 1e-12) * 255).round().astype(np.uint8)
