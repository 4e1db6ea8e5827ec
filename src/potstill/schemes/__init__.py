"""Who teaches whom. A scheme is a module that a loop, any loop, calls with a batch."""

from __future__ import annotations

from potstill.schemes.adversarial import Adversarial
from potstill.schemes.born_again import BornAgain
from potstill.schemes.deep_supervision import DeepSupervision
from potstill.schemes.mutual import Mutual
from potstill.schemes.offline import Offline, StudentPart
from potstill.schemes.on_policy import OnPolicy
from potstill.schemes.self_taught import MeanTeacher, SmoothedLabels
from potstill.schemes.stages import Stage

__all__ = [
    "Adversarial",
    "BornAgain",
    "DeepSupervision",
    "MeanTeacher",
    "Mutual",
    "Offline",
    "OnPolicy",
    "SmoothedLabels",
    "Stage",
    "StudentPart",
]
