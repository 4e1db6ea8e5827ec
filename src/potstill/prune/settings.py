"""The recipe's ``prune`` section."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, fields
from typing import Annotated, ClassVar, Literal

from potstill.errors import UserError
from potstill.losses import Range
from potstill.prune.groups import Axis

__all__ = ["PruneConfig", "Quantity", "TargetConfig", "pattern_of"]

Quantity = Literal["parameters", "macs", "bytes", "latency"]
POSITIVE = Range(above=0)
TIMES = ("latency", "latency_ms", "tokens_per_second")


@dataclass(frozen=True, kw_only=True)
class TargetConfig:
    """How small: one of these; counts up to 1 are shares of the original."""

    where: ClassVar[str] = "prune.target"
    """Its key in a recipe."""
    remedy: ClassVar[str] = "use a quieter machine or a larger prune.latency_batch"
    """What helps where noise hides whether it is met."""
    parameters: Annotated[float, POSITIVE] | None = None
    """Parameters: a count, or a share such as 0.75."""
    macs: Annotated[float, POSITIVE] | None = None
    """Multiply-accumulates of one image: a count, or a share."""
    bytes: Annotated[float, POSITIVE] | None = None
    """Size of the weights: a count, or a share."""
    latency: Annotated[float, Range(above=0, most=1)] | None = None
    """Share of the original's measured time."""
    latency_ms: Annotated[float, POSITIVE] | None = None
    """Measured milliseconds of a forward pass."""
    tokens_per_second: Annotated[float, POSITIVE] | None = None
    """Measured tokens of a forward pass a second."""

    def __post_init__(self) -> None:
        given = [name for name, value in asdict(self).items() if value is not None]
        if len(given) != 1:
            raise UserError(
                self.where,
                f"expected one of {', '.join(asdict(self))}, got {' and '.join(given) or 'none'}",
            )

    @property
    def given(self) -> tuple[str, float]:
        """The key that is set, and its value."""
        return next((name, value) for name, value in asdict(self).items() if value is not None)

    @property
    def quantity(self) -> Quantity:
        """What is counted or timed."""
        name = self.given[0]
        return "latency" if name in TIMES else name  # type: ignore[return-value]

    def absolute(self, whole: float, tokens: int = 0) -> float:
        """The target in the unit of ``whole``, the original's own figure.

        Args:
            whole: Of the original; milliseconds for a time.
            tokens: Tokens of the forward pass that is timed, where there are any.

        Raises:
            UserError: If it is not below that, or tokens a second are asked of a network without tokens.
        """
        name, value = self.given
        if name == "tokens_per_second":
            if not tokens:
                raise UserError(f"{self.where}.{name}", "has a meaning for texts alone; give latency_ms")
            if value <= (own := 1000 * tokens / whole):
                raise UserError(
                    f"{self.where}.{name}", f"must be above the model's own {own:.4g}, got {value:g}"
                )
            return 1000 * tokens / value
        share = name == "latency" or (name != "latency_ms" and value <= 1)
        target = value * whole if share else value
        if target >= whole:
            raise UserError(f"{self.where}.{name}", f"must be below the model's own {whole:g}, got {value:g}")
        return target


OF_WEIGHTS = ("weights", "weight_importance", "calibration", "steps", "scores")
"""Keys that say something of single weights, or nothing wrong: all of them go in one step."""


@dataclass(frozen=True, kw_only=True)
class PruneConfig:
    """The student is the teacher with parts removed, in rounds, each followed by training."""

    target: TargetConfig | None = None
    """How small."""
    weights: float | str | None = None
    """Single weights that become zero and stay so: a share of each layer's, or ``"2:4"``: two of every
    four along the inputs are kept; after the last removal, where there is a target too."""
    weight_importance: Literal["magnitude", "input"] = "magnitude"
    """What decides among single weights: their magnitude, or that times the norm of what they multiply."""
    steps: Annotated[int, Range(least=1, most=100)] = 3
    """Rounds; the target is approached in equal ratios."""
    between: Annotated[float, Range(above=0, most=1)] = 0.25
    """Training of each round but the last, as a share of ``train``'s length."""
    axes: tuple[Axis, ...] | None = None
    """What may go: ``layers`` (whole blocks) and ``channels``; of a language model or an encoder ``layers``,
    ``mlp``, ``heads``, ``kv_groups``, ``hidden``. By default layers and channels, or layers and ``mlp``."""
    importance: Literal["taylor", "activation", "activation_weight", "magnitude"] = "taylor"
    """What decides among channels."""
    layer_importance: Literal["loss", "influence", "greedy"] = "loss"
    """What decides among blocks: the loss without each, 1 - cosine of what enters and leaves, or the loss
    tried again after each block that goes."""
    calibration: Annotated[int, Range(least=1)] = 512
    """Training samples that scores are computed on; rows of tokens for a language model."""
    candidates: Annotated[int, Range(least=1)] = 5
    """Mixtures of fewer blocks and fewer channels that are compared in each round."""
    finalists: Annotated[int, Range(least=1)] = 2
    """The best of them by calibration loss, which are distilled shortly and compared again."""
    trial_steps: Annotated[int, Range(least=0)] = 30
    """Length of that, in optimiser steps; 0 for none."""
    keep: Annotated[float, Range(least=0, most=1)] = 0.125
    """Smallest share of its units, or of its layers, that the original keeps through all rounds."""
    multiple: Annotated[int, Range(least=1)] = 1
    """Widths are multiples of this; heads are counted one by one."""
    latency_batch: Annotated[int, Range(least=1)] = 1
    """Batch that a latency target is measured with."""
    rivals: tuple[Literal["scratch", "one_shot"], ...] = ()
    """Other students of the final size, for comparison: with fresh weights, or cut in one removal; the same
    teacher trains them as long as all rounds together."""
    scores: str | None = None
    """Folder where scores are kept for other runs; by default inside the run folder."""

    def __post_init__(self) -> None:
        if self.target is None and self.weights is None:
            raise UserError("prune.target", "missing; expected how small, or prune.weights")
        if self.axes is not None and len(set(self.axes)) < max(1, len(self.axes)):
            given = ", ".join(self.axes) or "none"
            raise UserError("prune.axes", f"expected one or more, each once, got {given}")
        if self.weights is not None:
            _check_weights(self)

    @property
    def rounds(self) -> int:
        """How often parts go: once where it is single weights alone."""
        return 1 if self.target is None else self.steps


def pattern_of(weights: float | str) -> tuple[int, int] | float:
    """N and M of a pattern, or the share of weights that go.

    Raises:
        UserError: If it is neither.

    >>> pattern_of("2:4"), pattern_of(0.5)
    ((2, 4), 0.5)
    """
    read = re.fullmatch(r"(\d+):(\d+)", weights) if isinstance(weights, str) else None
    if read and 0 < int(read[1]) < int(read[2]):
        return int(read[1]), int(read[2])
    if isinstance(weights, str) or not 0 < weights < 1:
        raise UserError(
            "prune.weights", f"expected a share above 0 and below 1, or N:M such as 2:4, got {weights!r}"
        )
    return weights


def _check_weights(config: PruneConfig) -> None:
    assert config.weights is not None
    pattern = pattern_of(config.weights)
    if config.rivals:
        raise UserError("prune.rivals", "have no meaning beside prune.weights; leave them out")
    for part in fields(config) if config.target is None else ():
        if part.name not in OF_WEIGHTS and getattr(config, part.name) != part.default:
            raise UserError(
                f"prune.{part.name}", "has no meaning where single weights go and no parts (prune.target)"
            )
    if config.target is not None and isinstance(pattern, tuple) and config.multiple % pattern[1]:
        raise UserError(
            "prune.multiple",
            f"must be a multiple of {pattern[1]} for prune.weights: {config.weights}, got {config.multiple}",
        )
