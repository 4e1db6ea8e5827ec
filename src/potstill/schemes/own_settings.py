"""The recipe's ``scheme`` section, where a network teaches itself: exits, averages, smoothed labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from torch import nn

from potstill.batch import Batch
from potstill.errors import UserError
from potstill.losses import Range
from potstill.models.exit_heads import Heads
from potstill.models.exits import WithExits
from potstill.schemes.deep_supervision import DeepSupervision
from potstill.schemes.ingredients import LESSON, Ingredients, Networks, TeacherUse, refuse_auto
from potstill.schemes.offline import Offline
from potstill.schemes.self_taught import MeanTeacher, SmoothedLabels

__all__ = ["DeepSupervisionConfig", "MeanTeacherConfig", "SmoothedLabelsConfig"]

MAX_LOSS = 0.005


@dataclass(frozen=True, kw_only=True)
class DeepSupervisionConfig:
    """Early exits, taught by the student's own deepest answer."""

    kind: Literal["deep_supervision"] = "deep_supervision"
    """Who teaches whom."""
    exits: Literal["auto"] | tuple[str, ...] = "auto"
    """Layers with an exit; ``auto`` for the ends of all stages but the last."""
    heads: Heads = "separable"
    """Convolutions of exits on maps; ``residual`` blocks have several times the parameters and learn more."""
    head_blocks: tuple[Annotated[int, Range(least=1)], ...] = (1,)
    """Residual blocks at each size that a head passes through, the deepest last."""
    taught_by: Literal["deepest", "ensemble"] = "deepest"
    """``ensemble``: by the mean of all exits."""
    train_backbone: bool = True
    """Train the network too; without, only its exits, and ``student`` needs trained weights."""
    policy: Literal["probability", "entropy", "margin", "patience"] = "probability"
    """By which score a sample leaves early."""
    max_loss: Annotated[float, Range(above=0, most=0.999999)] | None = None
    """Accuracy that leaving early may cost, as a fraction; 0.005 where no latency is stated."""
    max_latency_ms: Annotated[float, Range(above=0)] | None = None
    """Mean time of one image that thresholds are chosen for, in place of ``max_loss``."""
    calibrate_on: Annotated[float, Range(above=0)] | None = None
    """Test images that choose thresholds, a share below 1 or a number; the others report. Without,
    validation images choose, which no weights may have seen."""
    shift: bool = False
    """Also try the thresholds on blurred, noisy and darker images."""

    teacher: ClassVar[TeacherUse] = "refused"
    distill: ClassVar[Mapping[str, Any]] = {
        "labels": {"weight": 0.7},
        "kl": {"weight": 0.3 / 9, "temperature": 3.0},
        "feature_mse": {"weight": 0.004},  # 1e-6 times the 4096 values of ResNet-20's last maps
    }

    def networks_by_name(self) -> Networks:
        """One student."""
        return {"student": None}

    def __post_init__(self) -> None:
        if not self.head_blocks or (self.heads == "separable" and self.head_blocks != (1,)):
            raise UserError(
                "scheme.head_blocks",
                f"expected numbers of residual blocks beside heads: residual, got {list(self.head_blocks)} "
                f"beside {self.heads}",
            )
        if self.max_loss is not None and self.max_latency_ms is not None:
            raise UserError("scheme", "expected one wish, either max_loss or max_latency_ms, got both")

    @property
    def wished_loss(self) -> float | None:
        """Accuracy that may be lost, ``None`` where a latency is stated."""
        return MAX_LOSS if self.max_loss is None and self.max_latency_ms is None else self.max_loss

    def with_exits(self, network: nn.Module, given: Batch) -> WithExits:
        """``network`` with exits that are not trained yet.

        Raises:
            UserError: As :class:`WithExits` does, or if one exit alone is to be patient.
        """
        exits = self.exits if isinstance(self.exits, str) else list(self.exits)
        example = given.tensor("student")
        shape: dict[str, Any] = {"heads": self.heads, "blocks": self.head_blocks}
        made = WithExits(network, exits, example, **shape, where="scheme.exits")
        if self.policy == "patience" and len(made.paths) == 1:
            raise UserError(
                "scheme.policy", f"patience counts exits that agree, and there is one: '{made.paths[0]}'"
            )
        return made

    def build(self, given: Ingredients) -> DeepSupervision:
        """The scheme."""
        refuse_auto(given.objective, "deep_supervision")
        student = self.with_exits(given.fresh(None, 0), given.example)
        options: dict[str, Any] = {"taught_by": self.taught_by, "train_backbone": self.train_backbone}
        return DeepSupervision(student, given.objective, **options)


@dataclass(frozen=True, kw_only=True)
class MeanTeacherConfig:
    """A student taught by the average of its own weights."""

    kind: Literal["mean_teacher"] = "mean_teacher"
    """Who teaches whom."""
    decay: Annotated[float, Range(above=0, most=0.999999)] = 0.999
    """Of the average."""

    teacher: ClassVar[TeacherUse] = "refused"
    distill: ClassVar[Mapping[str, Any]] = LESSON

    def networks_by_name(self) -> Networks:
        """The student and its average."""
        return {"student": None, "average": None}

    def build(self, given: Ingredients) -> MeanTeacher:
        """The scheme."""
        shapes: dict[str, Any] = {"example": given.example, "samples": given.samples}
        return MeanTeacher(given.fresh(None, 0), given.objective, decay=self.decay, **shapes)


@dataclass(frozen=True, kw_only=True)
class SmoothedLabelsConfig:
    """A student taught by labels that are sure to a degree."""

    kind: Literal["smoothed_labels"] = "smoothed_labels"
    """Who teaches whom."""
    correct: Annotated[float, Range(above=0, most=0.999999)] = 0.99
    """Probability of the label."""

    teacher: ClassVar[TeacherUse] = "refused"
    distill: ClassVar[Mapping[str, Any]] = {
        "labels": {"weight": 0.9},
        "kl": {"weight": 0.1, "temperature": 20.0},
    }

    def networks_by_name(self) -> Networks:
        """One student."""
        return {"student": None}

    def build(self, given: Ingredients) -> Offline:
        """The scheme."""
        for term in given.objective.terms.values():
            if term.signal != "logits":
                raise UserError(term.where, "smoothed labels have no layers to compare; match logits only")
        return Offline(given.fresh(None, 0), SmoothedLabels(given.classes, self.correct), given.objective)
