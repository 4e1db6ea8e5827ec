"""The recipe's ``scheme`` section: which scheme, its options, and what it is made from."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import nn

from potstill.errors import UserError
from potstill.losses import Range
from potstill.models import ModelConfig
from potstill.schemes.adversarial import Adversarial
from potstill.schemes.born_again import BornAgain
from potstill.schemes.deep_supervision import DeepSupervision
from potstill.schemes.game_settings import AdversarialConfig
from potstill.schemes.ingredients import LESSON, Ingredients, Networks, TeacherUse, refuse_auto
from potstill.schemes.mutual import Mutual
from potstill.schemes.offline import Offline
from potstill.schemes.on_policy import OnPolicy
from potstill.schemes.own_settings import DeepSupervisionConfig, MeanTeacherConfig, SmoothedLabelsConfig
from potstill.schemes.self_taught import MeanTeacher
from potstill.schemes.written_settings import OnPolicyConfig

__all__ = [
    "AdversarialConfig",
    "AnyScheme",
    "BornAgainConfig",
    "DeepSupervisionConfig",
    "Ingredients",
    "LabelsConfig",
    "MeanTeacherConfig",
    "MutualConfig",
    "OfflineConfig",
    "OnPolicyConfig",
    "SchemeConfig",
    "SmoothedLabelsConfig",
    "TeacherUse",
    "others_of",
]

AnyScheme = Offline | BornAgain | Mutual | DeepSupervision | MeanTeacher | OnPolicy | Adversarial


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
        refuse_auto(given.objective, "born_again")
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
    views: Literal["shared", "own"] = "shared"
    """``own``: each peer sees an augmented view of its own of the same samples."""
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
        refuse_auto(given.objective, "mutual")
        places = list(self.networks_by_name().values())
        peers = [given.fresh(place, number) for number, place in enumerate(places)]
        if self.views == "shared":
            _refuse_twins(peers)
        return Mutual(
            peers,
            given.objective,
            example=given.example,
            samples=given.samples,
            over_peers=self.over_peers,
            alike=places.count(None),
        )


def _refuse_twins(peers: Sequence[nn.Module]) -> None:
    """Peers of the same weights that see the same views have nothing to tell each other, ever."""
    states = [peer.state_dict() for peer in peers]
    for (first, ours), (second, theirs) in itertools.combinations(enumerate(states, 1), 2):
        if ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours):
            raise UserError(
                "scheme.peers",
                f"peer{first} and peer{second} start from the very same weights and see the same views, so "
                f"they would stay one network; say views: own, or give the student no weights to start from",
            )


@dataclass(frozen=True, kw_only=True)
class LabelsConfig:
    """A network that learns from labels alone, such as a teacher to be; it is its own control."""

    kind: Literal["labels"] = "labels"
    """Who teaches whom."""

    teacher: ClassVar[TeacherUse] = "refused"
    distill: ClassVar[Mapping[str, Any]] = {}

    def networks_by_name(self) -> Networks:
        """One student."""
        return {"student": None}

    def build(self, given: Ingredients) -> Offline:
        """The scheme."""
        for term in given.objective.terms.values():
            raise UserError(term.where, "has no meaning with scheme: labels; leave it out")
        return Offline(given.fresh(None, 0), None, given.objective)


SchemeConfig = (
    OfflineConfig
    | LabelsConfig
    | BornAgainConfig
    | MutualConfig
    | DeepSupervisionConfig
    | MeanTeacherConfig
    | SmoothedLabelsConfig
    | OnPolicyConfig
    | AdversarialConfig
)


def others_of(config: SchemeConfig) -> Sequence[ModelConfig]:
    """Architectures beside the student's."""
    if isinstance(config, AdversarialConfig):
        return (config.discriminator,)
    return config.networks if isinstance(config, BornAgainConfig | MutualConfig) else ()
