"""A narrow network of its teacher's class that starts from the teacher's units that matter most.

The units and what they matter are found as ``prune`` finds them. All layers are narrowed alike, by the
class's own argument ``width``, so that the class can build and load the student; what is left of the teacher
is where it starts, not an equal network.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor, nn

from potstill import measure
from potstill.batch import Inputs
from potstill.errors import UserError
from potstill.losses import Range
from potstill.models.load import ModelConfig
from potstill.prune.gauge import Gauge
from potstill.prune.groups import Group, Plan, Structure
from potstill.prune.importance import Losses, unit_scores
from potstill.prune.removal import removed
from potstill.prune.settings import TargetConfig
from potstill.prune.structure import find_structure

__all__ = ["GeneratorStudentConfig", "Start", "WidthTarget", "fitting", "narrow_config", "widest"]

LARGEST = 1 << 16
"""No width is tried above it, whatever fits."""


@dataclass(frozen=True, kw_only=True)
class WidthTarget(TargetConfig):
    """How small the student must be: one of these; counts up to 1 are shares of the teacher's."""

    where: ClassVar[str] = "student.target"
    remedy: ClassVar[str] = "use a quieter machine, or count macs"


@dataclass(frozen=True, kw_only=True)
class GeneratorStudentConfig(ModelConfig):
    """The generator to train; by default its teacher made narrow, from the channels that matter most."""

    model: str = "teacher"
    """A network of its own, or ``teacher``: the same, with other ``arguments``."""
    width: Literal["auto"] | Annotated[int, Range(least=1)] | None = None
    """Of the teacher made narrow, whose class must take it; ``auto``: the largest that meets ``target``."""
    target: WidthTarget | None = None
    """How small the student must be."""
    importance: Literal["activation_weight", "activation", "magnitude"] = "activation_weight"
    """What decides among the teacher's channels, as in ``prune``."""
    calibration: Annotated[int, Range(least=1)] = 8
    """Training samples that activations are taken from."""

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
        for key in ("importance", "calibration"):
            if self.model != "teacher" and getattr(self, key) != getattr(type(self), key):
                raise UserError(
                    f"student.{key}", f"chooses among the teacher's channels, got model: {self.model}"
                )


def narrow_config(student: GeneratorStudentConfig, teacher: ModelConfig) -> ModelConfig:
    """What makes the student of ``model: teacher``, its arguments and width on top of the teacher's."""
    width = {"width": student.width} if isinstance(student.width, int) else {}
    arguments = {**teacher.arguments, **student.arguments, **width}
    return replace(teacher, arguments=arguments, weights=None, pretrained=False)


def widest(fits: Callable[[int], bool], most: int = LARGEST) -> int:
    """The largest width up to ``most`` that fits, where all smaller ones do too; 0 if none does.

    Widths are doubled until one does not fit, so none is tried that is twice as large as the answer or more.

    >>> widest(lambda width: width**2 <= 10)
    3
    """
    low, high = 0, 1
    while high <= most and fits(high):
        low, high = high, 2 * high
    high = min(high, most + 1) - 1
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def fitting(
    target: WidthTarget, make: Callable[[int], nn.Module], teacher: nn.Module, one: measure.OneInput
) -> tuple[int, str]:
    """The largest width that meets a target, and what it costs, in words.

    Args:
        target: How small.
        make: A network of a width, on the teacher's device.
        teacher: The widest there is.
        one: Shape of one input.

    Raises:
        UserError: If even a width of 1 is larger, or slower; if the target is not below the teacher's own
            figure, or this machine is too noisy to tell whether it is met.
    """
    name, value = target.given
    gauge = Gauge.of(target, teacher, measure.random_input(teacher, one), lambda _: ())
    if measure.parameters(make(1)) == measure.parameters(make(2)):
        raise UserError("student.width", f"changes nothing in {type(teacher).__name__}")
    costs: dict[int, float] = {}

    def fits(width: int) -> bool:
        costs[width] = gauge.measured(make(width))
        return costs[width] <= gauge.goal

    def told(width: int) -> str:
        return f"{gauge.written(costs[width])}, {costs[width] / gauge.whole:.3g} of the teacher's"

    width = widest(fits)
    if not width:
        raise UserError(f"student.target.{name}", f"even a width of 1 is above it: {told(1)}, got {value:g}")
    wider = f"; a width of {width + 1} has {told(width + 1)}" if width + 1 in costs else ""
    return width, f"width: auto is {width}, target {name} {value:g}: {told(width)}{wider}"


@dataclass(frozen=True)
class Start:
    """What narrow students of one teacher start from.

    Attributes:
        teacher: The wide network.
        structure: Where its channels lie.
        scores: What each matters, ``(units,)`` by name of the group.
    """

    teacher: nn.Module
    structure: Structure
    scores: Mapping[str, Tensor]

    @classmethod
    def of(
        cls,
        teacher: nn.Module,
        example: Inputs,
        losses: Losses,
        kind: Literal["activation_weight", "activation", "magnitude"] = "activation_weight",
    ) -> Start:
        """Find a teacher's channels and score them.

        Args:
            teacher: The wide network; left as it is.
            example: A small batch of its inputs, ``(N, ...)``.
            losses: The calibration; its losses are not looked at.
            kind: Which score.

        Raises:
            UserError: If it cannot be traced, or has no channels.
        """
        try:
            structure = find_structure(teacher, example, ["channels"], exact=False)
        except UserError as error:
            raise UserError("student.model", f"the teacher cannot be made narrow: {error.message}") from error
        return cls(teacher, structure, unit_scores(teacher, structure.groups, losses, kind))

    @torch.no_grad()
    def give(self, student: nn.Module) -> None:
        """Give a student the weights of the channels that matter most; of larger kernels the middle.

        Args:
            student: A network of the teacher's class, changed in place: narrower, perhaps of smaller kernels.

        Raises:
            UserError: If it is wider, or built of other parts.
        """
        own = student.state_dict()
        gone = {}
        for group in self.structure.groups:
            order = self.scores[group.name].argsort(stable=True).tolist()
            gone[group.name] = tuple(sorted(order[: group.units - self._left(group, own)]))
        cut = removed(self.teacher, Plan(units=gone), self.structure).state_dict()
        if strange := sorted(cut.keys() ^ own.keys()):
            raise UserError(
                "student.arguments", f"make other parts than the teacher has: {', '.join(strange[:3])}"
            )
        student.load_state_dict({name: _middle(cut[name], own[name], name) for name in own})

    def _left(self, group: Group, own: Mapping[str, Tensor]) -> int:
        """How many of a group's units a student has."""
        piece = group.writers[0]
        wide = self.teacher.state_dict()[piece.path].shape[piece.dim]
        if piece.path not in own:
            raise UserError("student.arguments", f"make other parts than the teacher has: no {piece.path}")
        narrow = own[piece.path].shape[piece.dim]
        left, rest = divmod(int(narrow) * group.units, int(wide))
        if narrow > wide or rest or not left:
            raise UserError(
                "student.arguments", f"{piece.path}: must be at most the teacher's {wide} wide, got {narrow}"
            )
        return left


def _middle(weight: Tensor, like: Tensor, name: str) -> Tensor:
    """The middle of kernels that are larger than those of ``like``.

    Raises:
        UserError: If the tensors differ in something else.
    """
    given, wanted = tuple(weight.shape), tuple(like.shape)
    if len(given) != len(wanted) or given[:2] != wanted[:2] or any(map(int.__lt__, given, wanted)):
        raise UserError(
            "student.arguments", f"{name}: has {wanted}, what is left of the teacher's is {given}"
        )
    for dim, (size, kept) in enumerate(zip(given, wanted, strict=True)):
        weight = weight.narrow(dim, (size - kept) // 2, kept)
    return weight
