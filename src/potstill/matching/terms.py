"""What a recipe says under ``distill``: which losses, how heavy, where, when.

A term's options and their ranges are read from the signature of its loss; nothing is listed twice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Annotated, Any, Literal

from torch import Tensor

from potstill import losses
from potstill._annotated import check_value, options_of
from potstill.errors import UserError, nearest
from potstill.losses._declare import OUTPUTS, LossSpec, Range, spec_of
from potstill.matching.pairing import Layers

__all__ = ["MEASURED_SHARE", "LabelsConfig", "Term", "TermConfig", "Times", "parse_terms", "weight_at"]

Schedule = Literal["constant", "linear", "cosine"]
Start = Literal["random", "fitted"]
FIRST_WARMUP = 1e-3
"""Share of the weight with which a warm-up begins: never nothing, so there is always a gradient."""
MEASURED_SHARE = 0.02
"""Share of the run after which the weight of a term at ``auto`` is chosen."""


@dataclass(frozen=True, kw_only=True)
class Times:
    """When something counts; all times are shares of the run, 0 to 1."""

    schedule: Schedule = "constant"
    """``linear`` and ``cosine`` fall to 0 at ``until``."""
    warmup: float = 0.0
    """Share of the run over which the weight rises linearly, from ``start`` on."""
    start: float = 0.0
    """Where it begins (``from`` in a recipe)."""
    until: float | None = None
    """Where it ends: by default with the run, or where its loss says (some only start a training)."""


@dataclass(frozen=True, kw_only=True)
class LabelsConfig(Times):
    """The supervised loss beside the terms."""

    weight: float | None = None
    """Multiplies the supervised loss; the terms' default for it where absent."""


@dataclass(frozen=True, kw_only=True)
class TermConfig(Times):
    """One thing that is matched."""

    weight: float | Literal["auto"] | None = None
    """Multiplies it; the loss's default where absent, chosen by measured gradients where ``auto``."""
    share: float | None = None
    """At ``auto``: how long its gradient is to be, the supervised loss's being 1."""
    loss: str
    """Name of a function in :mod:`potstill.losses`."""
    layers: Layers = "auto"
    """``auto``, ``[path, ...]``, ``[[student, teacher], ...]`` or ``{student: teacher}``."""
    adapter: Start = "random"
    """How its adapters begin: ``fitted`` is the least-squares map from student's to teacher's layers."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Options of the loss."""


def end_of(config: Times) -> float:
    """Share of the run at which ``config`` ends."""
    return 1.0 if config.until is None else config.until


def weight_at(weight: float, config: Times, progress: float) -> float:
    """The weight at ``progress``, a share of the run; 0 outside ``start`` to ``until``.

    >>> weight_at(2.0, LabelsConfig(schedule="linear", start=0.5), 0.75)
    1.0
    """
    end = end_of(config)
    if progress < config.start or (progress >= end and end < 1.0):
        return 0.0
    full = config.start + config.warmup
    if progress < full:
        return weight * max((progress - config.start) / config.warmup, FIRST_WARMUP)
    if config.schedule == "constant" or end <= full:
        return weight
    left = min(max((end - progress) / (end - full), 0.0), 1.0)
    return weight * (left if config.schedule == "linear" else 0.5 - 0.5 * math.cos(math.pi * left))


class Term:
    """A checked :class:`TermConfig` with its loss.

    Args:
        name: Name in the recipe; messages start with ``distill.<name>``.
        config: What it matches.

    Attributes:
        weight: Its weight at full strength: the loss's own default where the recipe gives no number.
        share: Where the weight is ``auto``, the length of its gradient that is wanted, as a multiple of the
            supervised loss's; else ``None``. By default, a loss of outputs pulls as its default weight
            stands to the labels' (9 for ``kl``: their gradients are alike in size), any other half as
            hard as the labels.
        options: All options of its loss, defaults included.

    Raises:
        UserError: At the dotted key that is unknown, of a wrong type or out of range.
    """

    def __init__(self, name: str, config: TermConfig) -> None:
        self.name = name
        self.where = f"distill.{name}"
        self.config = config
        if config.loss not in losses.__all__:
            known = nearest(config.loss, losses.__all__)
            named = name == config.loss
            at, got = (self.where, "") if named else (f"{self.where}.loss", f" '{config.loss}'")
            raise UserError(at, f"unknown loss{got}{known}")
        self.function: Callable[..., Tensor] = getattr(losses, config.loss)
        self.spec: LossSpec = spec_of(self.function)
        if config.until is None:
            self.config = config = replace(config, until=max(self.spec.until, _least_end(config)))
        _check_weight(self.where, config.weight, auto=True)
        _check_share(self.where, config)
        _check_times(self.where, config)
        self.weight = config.weight if isinstance(config.weight, int | float) else self.spec.weight
        self.share = self._wanted_share() if config.weight == "auto" else None
        self.options = self._checked_options()
        _check_layers(self.where, config.layers, self.spec)
        _check_adapter(self.where, config, self.spec)

    def _checked_options(self) -> dict[str, Any]:
        known = options_of(self.function)
        for option, value in self.config.options.items():
            where = f"{self.where}.{option}"
            if option not in known:
                raise UserError(where, f"unknown option{nearest(str(option), [*known, *_keys(TermConfig)])}")
            check_value(where, value, known[option][0])
        return {option: self.config.options.get(option, default) for option, (_, default) in known.items()}

    def _wanted_share(self) -> float:
        if self.config.share is not None:
            return self.config.share
        return self.spec.weight / self.spec.labels if self.on_output else 0.5

    @property
    def on_output(self) -> bool:
        """Whether it compares answers, and so needs no layers."""
        return self.spec.signal in OUTPUTS

    @property
    def signal(self) -> str:
        """What it compares, as its loss declares."""
        return self.spec.signal


def _least_end(config: TermConfig) -> float:
    """A term that is told to begin or to rise late ends with the run."""
    return 1.0 if config.start or config.warmup else 0.0


def parse_terms(raw: Mapping[str, Any]) -> tuple[LabelsConfig | None, dict[str, TermConfig]]:
    """Read the ``distill`` section of a recipe.

    Args:
        raw: ``{name: {weight, layers, schedule, warmup, from, until, options...}}``. The name is the loss
            unless ``loss`` says otherwise; ``labels`` is the supervised loss.

    Returns:
        What it says of the labels (``None`` where it says nothing), and the terms by name.

    Raises:
        UserError: At the dotted key that is unknown, of a wrong type or out of range.

    >>> labels, terms = parse_terms({"labels": {"weight": 0.1}, "kl": {"weight": 0.9, "temperature": 2}})
    >>> labels.weight, terms["kl"].options
    (0.1, {'temperature': 2})
    """
    labels: LabelsConfig | None = None
    terms: dict[str, TermConfig] = {}
    for name, given in raw.items():
        where = f"distill.{name}"
        if isinstance(given, TermConfig) and name != "labels":
            terms[name] = Term(name, given).config
            continue
        if given is not None and not isinstance(given, Mapping):
            raise UserError(where, f"expected a mapping such as {{weight: 0.9}}, got {given!r}")
        known, body = _known_and_other(LabelsConfig if name == "labels" else TermConfig, given or {})
        if name != "labels":
            terms[name] = Term(name, TermConfig(**{"loss": name, **known}, options=body)).config
            continue
        for key in body:
            raise UserError(f"{where}.{key}", f"unknown key{nearest(str(key), _keys(LabelsConfig))}")
        labels = LabelsConfig(**known)
        _check_weight(where, labels.weight, auto=False)
        _check_times(where, labels)
    return labels, terms


def _keys(config: type[Times]) -> list[str]:
    return [{"start": "from"}.get(item.name, item.name) for item in fields(config) if item.name != "options"]


def _known_and_other(config: type[Times], given: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    keys = _keys(config)
    known = {"start" if key == "from" else key: value for key, value in given.items() if key in keys}
    return known, {key: value for key, value in given.items() if key not in keys}


def _check_weight(where: str, weight: Any, *, auto: bool) -> None:
    if weight is not None and not (auto and weight == "auto"):
        number = Annotated[float, Range(least=0)]
        check_value(f"{where}.weight", weight, number | Literal["auto"] if auto else number)


def _check_share(where: str, config: TermConfig) -> None:
    if config.share is None:
        return
    check_value(f"{where}.share", config.share, Annotated[float, Range(above=0)])
    if config.weight != "auto":
        raise UserError(f"{where}.share", f"has a meaning at weight: auto alone, got weight: {config.weight}")


def _check_times(where: str, config: Times) -> None:
    check_value(f"{where}.schedule", config.schedule, Schedule)
    share = Annotated[float, Range(least=0, most=1)]
    for key, value in (("warmup", config.warmup), ("from", config.start), ("until", end_of(config))):
        check_value(f"{where}.{key}", value, share)
    end = end_of(config)
    if config.start >= end:
        raise UserError(f"{where}.until", f"must be after from ({config.start:g}), got {end:g}")
    if config.start + config.warmup > end:
        room = end - config.start
        raise UserError(f"{where}.warmup", f"must end before until (at most {room:g}), got {config.warmup:g}")


def _check_layers(where: str, layers: Any, spec: LossSpec) -> None:
    where = f"{where}.layers"
    if layers == "auto":
        return
    if spec.signal in OUTPUTS:
        raise UserError(where, f"has no meaning for a loss that compares {spec.signal}")
    forms = "expected auto, [path, ...], [[student, teacher], ...] or {student: teacher}"
    if isinstance(layers, str) or not isinstance(layers, Mapping | list | tuple) or not layers:
        raise UserError(where, f"{forms}, got {layers!r}")
    for item in layers.items() if isinstance(layers, Mapping) else layers:
        pair = (item,) if isinstance(item, str) else item
        whole = isinstance(pair, list | tuple) and (isinstance(item, str) or len(pair) == 2)
        if not whole or not all(isinstance(path, str) for path in pair):
            raise UserError(where, f"{forms}, got {item!r} in it")


def _check_adapter(where: str, config: TermConfig, spec: LossSpec) -> None:
    check_value(f"{where}.adapter", config.adapter, Start)
    if config.adapter == "fitted" and (not spec.adapter or spec.normalised):
        has = "has an adapter that ends in a norm" if spec.normalised else "has no adapter"
        raise UserError(f"{where}.adapter", f"fitted has no meaning for {config.loss}, which {has}")
