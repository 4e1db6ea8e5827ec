"""The recipe's ``teacher.cache`` section, and the teacher's with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from potstill.losses import Range
from potstill.models.load import ModelConfig

__all__ = ["CacheConfig", "TeacherConfig"]


@dataclass(frozen=True, kw_only=True)
class CacheConfig:
    """Keep the teacher's answers on disk: each view of each sample is asked for once."""

    views: Annotated[int, Range(least=1)] = 8
    """Views of each sample; epoch ``e`` shows view ``e`` mod ``views`` to both arms."""
    fidelity: Annotated[float, Range(least=0)] = 1e-4
    """Largest mean divergence of a stored answer from the teacher's, at the temperatures of the losses."""
    fill: Literal["online", "before"] = "online"
    """While the first epochs train, or before training; ``potstill run --only cache`` only fills."""
    path: str | None = None
    """Its folder; by default one of its own under ``runs/caches``."""
    top: Annotated[int, Range(least=1)] | None = None
    """Keep only so many classes of each answer and the rest as one, for losses of probabilities at 1."""
    words: Literal["drawn", "likeliest"] = "drawn"
    """Of a language model: words drawn from each token's distribution, unbiased and for ``kl`` alone, or the
    likeliest words and the mass of all others."""
    bytes: Annotated[int, Range(least=8)] = 128
    """Of a language model: at most so many a token."""
    taps: Literal["float16", "affine8"] = "float16"
    """How what layers gave is stored, where the losses need it."""

    shorthand = "views"


@dataclass(frozen=True, kw_only=True)
class TeacherConfig(ModelConfig):
    """The trained model to imitate, and whether its answers are kept."""

    cache: CacheConfig | None = None
    """Keep its answers on disk."""
