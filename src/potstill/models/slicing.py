"""A narrow generator that starts from the channels of its teacher that matter most."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from potstill.errors import UserError
from potstill.losses import Range
from potstill.models.generators import StyleGenerator
from potstill.models.load import ModelConfig

__all__ = ["GeneratorStudentConfig", "WidthTarget", "narrow_config", "start_from", "widest"]

SIZE = Range(above=0)
Layer = tuple[nn.Conv2d | nn.ConvTranspose2d, nn.InstanceNorm2d, str, str]
"""A convolution, its norm, and the groups of channels that it takes and gives."""


@dataclass(frozen=True, kw_only=True)
class WidthTarget:
    """How small: one of these; values up to 1 are shares of the teacher's."""

    macs: Annotated[float, SIZE] | None = None
    """Multiply-accumulates of one image."""
    parameters: Annotated[float, SIZE] | None = None
    """Parameters."""

    def __post_init__(self) -> None:
        if (self.macs is None) == (self.parameters is None):
            raise UserError("student.target", "expected one of macs and parameters")


@dataclass(frozen=True, kw_only=True)
class GeneratorStudentConfig(ModelConfig):
    """The generator to train; by default its teacher made narrow, from the channels that matter most."""

    model: str = "teacher"
    """A network of its own, or ``teacher``: the same, with other ``arguments`` such as ``width``."""
    width: Literal["auto"] | None = None
    """The largest width that meets ``target``."""
    target: WidthTarget | None = None
    """How small the student must be."""

    def __post_init__(self) -> None:
        if (self.width is None) != (self.target is None):
            raise UserError("student.target", "goes with width: auto; give both or neither")
        if self.width is not None and self.model != "teacher":
            raise UserError("student.width", f"auto narrows the teacher, got model: {self.model}")


def narrow_config(student: GeneratorStudentConfig, teacher: ModelConfig) -> ModelConfig:
    """What makes the student of ``model: teacher``, its arguments on top of the teacher's."""
    arguments = {**teacher.arguments, **student.arguments}
    return replace(teacher, arguments=arguments, weights=None, pretrained=False)


def widest(
    make: Callable[[int], nn.Module], most: int, size: Callable[[nn.Module], float], target: float
) -> int:
    """The largest width whose network is not larger than a target.

    Args:
        make: A network of a width.
        most: The largest width that is tried.
        size: Of a network; it grows with the width.
        target: What it must not exceed.

    Raises:
        UserError: If even a width of 1 is larger.

    >>> widest(lambda width: nn.Linear(width, width), 8, lambda one: one.weight.numel(), 10)
    3
    """
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if size(make(middle)) <= target else (low, middle - 1)
    if not low:
        raise UserError("student.target", f"even a width of 1 is larger than {target:g}")
    return low


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
