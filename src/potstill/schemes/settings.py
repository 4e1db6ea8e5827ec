"""The recipe's ``scheme`` section: which scheme, its options, and what it is made from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from torch import nn

from potstill.batch import Batch
from potstill.errors import UserError
from potstill.losses import Range
from potstill.models import ModelConfig
from potstill.models.exits import WithExits
from potstill.objective import Objective
from potstill.schemes.born_again import BornAgain
from potstill.schemes.deep_supervision import DeepSupervision
from potstill.schemes.mutual import Mutual
from potstill.schemes.offline import Offline
from potstill.schemes.self_taught import MeanTeacher, SmoothedLabels

__all__ = [
    "AnyScheme",
    "BornAgainConfig",
    "DeepSupervisionConfig",
    "Ingredients",
    "MeanTeacherConfig",
    "MutualConfig",
    "OfflineConfig",
    "SchemeConfig",
    "SmoothedLabelsConfig",
    "TeacherUse",
    "others_of",
]

AnyScheme = Offline | BornAgain | Mutual | DeepSupervision | MeanTeacher
TeacherUse = Literal["needed", "allowed", "refused"]
Networks = dict[str, int | None]
"""Names of networks, each with its place in ``networks``; ``None`` for the student's architecture."""

LESSON: Mapping[str, Any] = {"labels": {"weight": 1.0}, "kl": {"weight": 1.0, "temperature": 1.0}}
"""Labels and another network's answers, side by side."""

MAX_LOSS = 0.005


@dataclass(frozen=True, kw_only=True)
class Ingredients:
    """What a scheme is made from.

    Attributes:
        fresh: A fresh network by its place in ``networks`` (``None`` for the student's architecture) and
            number; number 0 has the initial weights that the control has.
        teacher: The trained teacher, where the recipe has one.
        objective: What is minimised.
        example: A small batch, for shapes.
        samples: Size of the training set.
        classes: Number of classes.
    """

    fresh: Callable[[int | None, int], nn.Module]
    teacher: nn.Module | None
    objective: Objective
    example: Batch
    samples: int
    classes: int


@dataclass(frozen=True, kw_only=True)
class OfflineConfig:
    """A trained teacher teaches one student."""

    kind: Literal["offline"] = "offline"
    """Who teaches whom."""

    teacher: ClassVar[TeacherUse] = "needed"
    distill: ClassVar[Mapping[str, Any]] = {"kl": {}}

    def networks_by_name(self) -> Networks:
        """One student."""
        return {"student": None}

    def build(self, given: Ingredients) -> Offline:
        """The scheme."""
        shapes: dict[str, Any] = {"example": given.example, "samples": given.samples}
        return Offline(given.fresh(None, 0), given.teacher, given.objective, **shapes)


@dataclass(frozen=True, kw_only=True)
class BornAgainConfig:
    """Generations: each fresh network is taught by the one before; the last is the student."""

    kind: Literal["born_again"] = "born_again"
    """Who teaches whom."""
    generations: Annotated[int, Range(least=1)] | None = None
    """How many; 3 by default, or as ``networks`` says."""
    knowledge: Literal["plain", "permuted", "weighted"] = "plain"
    """``permuted`` (DKPP) and ``weighted`` (CWTM) are the paper's tests of what dark knowledge is."""
    networks: tuple[ModelConfig, ...] = ()
    """Other architectures for all generations but the last: a chain through assistants."""

    teacher: ClassVar[TeacherUse] = "allowed"

    def __post_init__(self) -> None:
        wanted = len(self.networks) + 1
        if self.networks and self.generations not in (None, wanted):
            raise UserError(
                "scheme.generations",
                f"must be {wanted}, {wanted - 1} networks and the student, got {self.generations}",
            )

    @property
    def distill(self) -> Mapping[str, Any]:
        """Terms where the recipe has none."""
        return {} if self.knowledge == "weighted" else LESSON

    def networks_by_name(self) -> Networks:
        """One network a generation."""
        others = len(self.networks)
        count = others + 1 if others else self.generations or 3
        return {f"generation{place + 1}": place if place < others else None for place in range(count)}

    def build(self, given: Ingredients) -> BornAgain:
        """The scheme; the last generation has the initial weights that the control has."""
        if self.knowledge == "weighted":
            for term in given.objective.terms.values():
                raise UserError(term.where, "has no meaning with scheme.knowledge: weighted; leave it out")
        _refuse_auto(given.objective, "born_again")
        places = list(self.networks_by_name().values())
        last = len(places) - 1
        students = [given.fresh(place, last - number) for number, place in enumerate(places)]
        return BornAgain(
            students,
            given.teacher,
            given.objective,
            example=given.example,
            samples=given.samples,
            knowledge=self.knowledge,
        )


@dataclass(frozen=True, kw_only=True)
class MutualConfig:
    """Peers that learn together; the student is the best by validation of those with its architecture."""

    kind: Literal["mutual"] = "mutual"
    """Who teaches whom."""
    peers: Annotated[int, Range(least=2)] | None = None
    """How many; by default 2, or one more than ``networks``."""
    over_peers: Literal["mean", "sum"] = "mean"
    """How the lessons of several other peers are joined."""
    networks: tuple[ModelConfig, ...] = ()
    """Other architectures, for the last peers."""

    teacher: ClassVar[TeacherUse] = "refused"
    distill: ClassVar[Mapping[str, Any]] = LESSON

    def __post_init__(self) -> None:
        if self.peers is not None and len(self.networks) >= self.peers:
            raise UserError(
                "scheme.networks",
                f"must leave a peer of the student's architecture, got {len(self.networks)} of {self.peers}",
            )

    def networks_by_name(self) -> Networks:
        """One network a peer; first those with the student's architecture."""
        others = len(self.networks)
        count = self.peers or max(2, others + 1)
        alike = count - others
        return {f"peer{place + 1}": None if place < alike else place - alike for place in range(count)}

    def build(self, given: Ingredients) -> Mutual:
        """The scheme; the first peer has the initial weights that the control has."""
        _refuse_auto(given.objective, "mutual")
        places = list(self.networks_by_name().values())
        return Mutual(
            [given.fresh(place, number) for number, place in enumerate(places)],
            given.objective,
            example=given.example,
            samples=given.samples,
            over_peers=self.over_peers,
            alike=places.count(None),
        )


@dataclass(frozen=True, kw_only=True)
class DeepSupervisionConfig:
    """Early exits, taught by the student's own deepest answer."""

    kind: Literal["deep_supervision"] = "deep_supervision"
    """Who teaches whom."""
    exits: Literal["auto"] | tuple[str, ...] = "auto"
    """Layers with an exit; ``auto`` for the ends of all stages but the last."""
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
        if self.max_loss is not None and self.max_latency_ms is not None:
            raise UserError("scheme", "expected one wish, either max_loss or max_latency_ms, got both")

    @property
    def wished_loss(self) -> float | None:
        """Accuracy that may be lost, ``None`` where a latency is stated."""
        return MAX_LOSS if self.max_loss is None and self.max_latency_ms is None else self.max_loss

    def with_exits(self, network: nn.Module, given: Batch) -> WithExits:
        """``network`` with exits that are not trained yet."""
        exits = self.exits if isinstance(self.exits, str) else list(self.exits)
        return WithExits(network, exits, given.tensor("student"), where="scheme.exits")

    def build(self, given: Ingredients) -> DeepSupervision:
        """The scheme."""
        _refuse_auto(given.objective, "deep_supervision")
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


SchemeConfig = (
    OfflineConfig
    | BornAgainConfig
    | MutualConfig
    | DeepSupervisionConfig
    | MeanTeacherConfig
    | SmoothedLabelsConfig
)


def _refuse_auto(objective: Objective, kind: str) -> None:
    for term in objective.terms.values():
        if term.share is not None:
            raise UserError(f"{term.where}.weight", f"auto has no meaning with scheme: {kind}; give a number")


def others_of(config: SchemeConfig) -> Sequence[ModelConfig]:
    """Architectures beside the student's."""
    return config.networks if isinstance(config, BornAgainConfig | MutualConfig) else ()
