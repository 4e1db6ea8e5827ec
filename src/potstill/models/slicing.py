"""A narrow generator that starts from the channels of its teacher that matter most.

The groups of ``prune`` do not fit here: they take only what answers alike with a channel masked and with it
gone, and an instance norm makes its bias of a channel of zeros. A slice is a start, not an equal network.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from potstill import measure
from potstill.errors import UserError
from potstill.losses import Range
from potstill.models.generators import StyleGenerator
from potstill.models.load import ModelConfig

__all__ = ["GeneratorStudentConfig", "WidthTarget", "fitting", "narrow_config", "start_from", "widest"]

SIZE = Range(above=0)
Layer = tuple[nn.Conv2d | nn.ConvTranspose2d, nn.InstanceNorm2d, str, str]
"""A convolution, its norm, and the groups of channels that it takes and gives."""


@dataclass(frozen=True, kw_only=True)
class WidthTarget:
    """How small: one of these; values up to 1 are shares of the teacher's, but for ``latency_ms``."""

    macs: Annotated[float, SIZE] | None = None
    """Multiply-accumulates of one image."""
    parameters: Annotated[float, SIZE] | None = None
    """Parameters."""
    latency: Annotated[float, Range(above=0, most=1)] | None = None
    """Share of the teacher's time for one image, both timed in turns on this machine."""
    latency_ms: Annotated[float, SIZE] | None = None
    """Milliseconds for one image, as timed on this machine."""

    def __post_init__(self) -> None:
        given = [each.name for each in fields(self) if getattr(self, each.name) is not None]
        if len(given) != 1:
            wanted = "one of macs, parameters, latency and latency_ms"
            raise UserError("student.target", f"expected {wanted}, got {' and '.join(given) or 'none'}")

    @property
    def given(self) -> tuple[str, float]:
        """Which of them, and its value."""
        (name,) = (each.name for each in fields(self) if getattr(self, each.name) is not None)
        return name, float(getattr(self, name))


@dataclass(frozen=True, kw_only=True)
class GeneratorStudentConfig(ModelConfig):
    """The generator to train; by default its teacher made narrow, from the channels that matter most."""

    model: str = "teacher"
    """A network of its own, or ``teacher``: the same, with other ``arguments``."""
    width: Literal["auto"] | Annotated[int, Range(least=1)] | None = None
    """Of the teacher made narrow; ``auto``: the largest that meets ``target``."""
    target: WidthTarget | None = None
    """How small the student must be."""

    def __post_init__(self) -> None:
        if (self.width == "auto" and self.target is None) or (self.width is None and self.target is not None):
            raise UserError("student.target", "goes with width: auto; give both or neither")
        if self.width is not None and self.model != "teacher":
            raise UserError("student.width", f"narrows the teacher, got model: {self.model}")
        if self.model == "teacher":
            for key in ("weights", "pretrained"):
                if getattr(self, key):
                    raise UserError(f"student.{key}", "has no meaning; it starts from its teacher's channels")
            if self.width is None and not self.arguments:
                raise UserError("student", "would be its teacher again; give a width, arguments or a model")


def narrow_config(student: GeneratorStudentConfig, teacher: ModelConfig) -> ModelConfig:
    """What makes the student of ``model: teacher``, its arguments and width on top of the teacher's."""
    width = {"width": student.width} if isinstance(student.width, int) else {}
    arguments = {**teacher.arguments, **student.arguments, **width}
    return replace(teacher, arguments=arguments, weights=None, pretrained=False)


def widest(fits: Callable[[int], bool], most: int) -> int:
    """The largest width up to ``most`` that fits, where all smaller ones do too; 0 if none does.

    >>> widest(lambda width: width**2 <= 10, 8)
    3
    """
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def fitting(
    target: WidthTarget, make: Callable[[int], nn.Module], teacher: nn.Module, one: measure.OneInput
) -> tuple[int, str]:
    """The largest width that meets a target, and what it costs beside it, in words.

    Args:
        target: How small.
        make: A network of a width, on the teacher's device.
        teacher: The widest there is.
        one: Shape of one input.

    Raises:
        UserError: If even a width of 1 is larger, or slower.
    """
    name, value = target.given
    # the teacher's own width: the channels after its first convolution
    most = int(next(teacher.parameters()).shape[0])
    found: dict[int, tuple[float, str]] = {}
    cost = _timed if name.startswith("latency") else _counted

    def fits(width: int) -> bool:
        found[width] = cost(name, make(width), teacher, one, value)
        return found[width][0] <= value

    width = widest(fits, most)
    if not width:
        raise UserError(
            f"student.target.{name}", f"even a width of 1 is above it: {found[1][1]}, got {value:g}"
        )
    wider = f"; a width of {width + 1} has {found[width + 1][1]}" if width + 1 in found else ""
    return width, f"width: auto is {width}, target {name} {value:g}: {found[width][1]}{wider}"


def _counted(
    name: str, model: nn.Module, teacher: nn.Module, one: measure.OneInput, value: float
) -> tuple[float, str]:
    """A count in the target's unit, and in words."""
    ours, theirs = (
        measure.macs_of_one(each, one) if name == "macs" else measure.parameters(each)
        for each in (model, teacher)
    )
    words = f"{ours:,} {'MACs' if name == 'macs' else name}, {ours / theirs:.3g} of the teacher's"
    return ours / theirs if value <= 1 else float(ours), words


def _timed(
    name: str, model: nn.Module, teacher: nn.Module, one: measure.OneInput, value: float
) -> tuple[float, str]:
    """A time in the target's unit, and in words with its spread."""
    del value
    both = {"student": model, "teacher": teacher}
    times = measure.latency({role: (each, measure.random_input(each, one)) for role, each in both.items()})
    ours, theirs = times["student"], times["teacher"].median_ms
    spread = f"10th to 90th percentile {ours.low_ms:.3g} to {ours.high_ms:.3g}, {ours.runs} passes"
    words = (
        f"{ours.median_ms:.3g} ms ({spread}), {ours.median_ms / theirs:.3g} of the teacher's {theirs:.3g} ms"
    )
    return ours.median_ms / theirs if name == "latency" else ours.median_ms, words


def _layers(network: StyleGenerator) -> list[Layer]:
    """All convolutions in order; channels that are added to each other are one group."""
    modules = list(network.modules())
    convs = [each for each in modules if isinstance(each, nn.Conv2d | nn.ConvTranspose2d)]
    norms = [each for each in modules if isinstance(each, nn.InstanceNorm2d)]
    blocks = [name for number in range(len(network.blocks)) for name in (f"block{number}", "inner")]
    given = ["enter", "down1", "inner", *blocks, "up1", "up2", "image"]
    taken = ["image", *given[:-1]]
    return list(zip(convs, norms, taken, given, strict=True))


@torch.no_grad()
def start_from(student: nn.Module, teacher: nn.Module) -> None:
    """Give a narrow generator the weights of the channels of a wide one that its norms scale up most.

    Args:
        student: A :class:`StyleGenerator`, changed in place.
        teacher: The same with more channels, perhaps larger kernels.

    Raises:
        UserError: If one is something else, or the student is not the narrower.

    >>> wide = StyleGenerator(width=4, blocks=1)
    >>> narrow = StyleGenerator(width=2, blocks=1)
    >>> start_from(narrow, wide)
    >>> bool(torch.isin(narrow.enter[0].weight, wide.enter[0].weight).all())
    True
    """
    for network in (student, teacher):
        if not isinstance(network, StyleGenerator) or any(
            isinstance(each, nn.Conv2d) and each.groups > 1 for each in network.modules()
        ):
            kind = type(network).__name__
            raise UserError(
                "student.model", f"teacher narrows a StyleGenerator with full filters, got {kind}"
            )
    assert isinstance(student, StyleGenerator)
    assert isinstance(teacher, StyleGenerator)
    if len(student.blocks) != len(teacher.blocks):
        raise UserError("student.arguments.blocks", f"must be the teacher's {len(teacher.blocks)}")
    ours, theirs = _layers(student), _layers(teacher)
    kept = _kept(ours, theirs)
    for (conv, norm, before, after), (wide, wide_norm, _, _) in zip(ours, theirs, strict=True):
        places = (before, after) if isinstance(conv, nn.ConvTranspose2d) else (after, before)
        weight = wide.weight.index_select(0, kept[places[0]]).index_select(1, kept[places[1]])
        edge = (weight.shape[-1] - conv.weight.shape[-1]) // 2
        side = slice(edge, edge + conv.weight.shape[-1])
        conv.weight.copy_(weight[..., side, side])
        norm.weight.copy_(wide_norm.weight[kept[after]])
        norm.bias.copy_(wide_norm.bias[kept[after]])


def _kept(ours: Sequence[Layer], theirs: Sequence[Layer]) -> dict[str, Tensor]:
    """Which of the teacher's channels each group keeps, in order."""
    scores: dict[str, Tensor] = {}
    for _, norm, _, after in theirs:
        scores[after] = scores.get(after, torch.zeros(())) + norm.weight.abs()
    kept = {}
    for _, norm, _, after in ours:
        count, there = norm.num_features, len(scores[after])
        if count > there:
            raise UserError(
                "student.arguments.width", f"must be at most the teacher's, got {count} of {there}"
            )
        kept[after] = scores[after].topk(count).indices.sort().values
    kept["image"] = torch.arange(theirs[-1][1].num_features)
    return kept
