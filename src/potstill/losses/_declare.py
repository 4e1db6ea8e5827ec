"""How a loss declares what it is: the signal it compares, its default weight, its contract.

A loss is a plain function; ``@matches(...)`` only hangs a :class:`LossSpec` on it, and option
ranges are written as ``Annotated[float, Range(above=0)]`` in its signature. Recipes, the page of
``potstill methods`` and the contract suite all read these declarations; there is no other registry.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

__all__ = ["LossSpec", "Positive", "Range", "Unit", "matches", "spec_of"]

Signal = Literal[
    "logits",
    "maps",
    "features",
    "vectors",
    "tokens",
    "attention",
    "gradients",
    "classes",
    "scores",
    "boxes",
    "corners",
    "response",
    "seen",
]
OUTPUTS = ("logits", "classes", "scores", "boxes", "corners", "response", "seen")
"""Signals that are answers; the others are found by layers."""
Spans = Literal["each", "neighbours", "all"]
Place = Literal["stages", "middle", "last"]
Function = TypeVar("Function", bound=Callable[..., object])


@dataclass(frozen=True)
class Range:
    """The values that a numeric option may take: ``above < x``, ``least <= x <= most``."""

    above: float | None = None
    least: float | None = None
    most: float | None = None


Positive = Annotated[float, Range(above=0)]
Unit = Annotated[float, Range(least=0, most=1)]


@dataclass(frozen=True, kw_only=True)
class LossSpec:
    """What a loss declares of itself.

    Attributes:
        signal: What it compares: ``logits`` (N, C), ``maps`` (N, C, H, W), ``tokens`` (N, L, C),
            ``vectors`` (N, C) (maps and tokens are averaged over their positions first), ``features``
            (any of these three), ``attention`` (N, heads, L, L), ``gradients``: pairs of logits and the
            tensor to differentiate by; of detectors ``classes`` or ``scores`` (N, R, C) and ``boxes``
            (N, R, 4) of each head, with what the labels say of each region as target, ``corners``
            (N, R, 4) as shares of the image, and ``response``, logits beside the probabilities that a
            detector's final boxes give each region; of generators
            ``seen``: maps of their images in a frozen network.
        weight: Default weight beside the supervised loss.
        labels: Default weight of the supervised loss beside it (0.1 beside ``kl``, else 1).
        over_set: The loss compares a whole batch and returns a 0-d tensor.
        target: It takes the labels, ``(N,)``, as a third argument.
        spans: How many of the planned layers one call sees: ``each`` pair alone, two ``neighbours``
            (``student`` and ``teacher`` are then pairs of tensors), or ``all`` (tuples).
        before_activation: It compares what goes into an activation function, not what comes out.
        until: When it ends by default, a share of the run: losses that only start a training.
        at: Which layers ``layers: auto`` takes: the end of all ``stages``, the ``middle`` or the ``last``.
        learns: For what has parameters or memory: the module that calls this function.
        adapter: The student's tensor goes through an adapter when its shape differs.
        normalised: It always does, and a batch norm ends it: the authors' connector.
        combine: How the values of several layers become one: ``sum`` or ``mean``.
        zero_at_equality: 0 where the student equals the teacher.
        non_negative: Never below 0.
        reason: Why one of the last two does not hold.
    """

    signal: Signal
    weight: float
    labels: float = 1.0
    over_set: bool = False
    target: bool = False
    spans: Spans = "each"
    at: Place = "stages"
    before_activation: bool = False
    until: float = 1.0
    adapter: bool = False
    normalised: bool = False
    learns: type | None = None
    combine: Literal["sum", "mean"] = "mean"
    zero_at_equality: bool = True
    non_negative: bool = True
    reason: str = ""


def matches(signal: Signal, *, weight: float, **declared: Any) -> Callable[[Function], Function]:
    """Decorate a loss function with its :class:`LossSpec`, whose other fields are ``declared``."""
    spec = LossSpec(signal=signal, weight=weight, **declared)

    def declare(function: Function) -> Function:
        function.__potstill__ = spec  # type: ignore[attr-defined]
        return function

    return declare


def spec_of(function: Callable[..., object]) -> LossSpec:
    """The declaration of a loss.

    Raises:
        ValueError: If ``function`` was never declared with ``@matches``.
    """
    spec = getattr(function, "__potstill__", None)
    if not isinstance(spec, LossSpec):
        name = getattr(function, "__name__", repr(function))
        raise ValueError(f"{name} is not a loss: expected a function declared with @matches(...)")
    return spec
