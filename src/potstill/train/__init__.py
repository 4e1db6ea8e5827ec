"""How a scheme is trained: the loop, its checkpoints, and who watches."""

from potstill.train.contract import Trained
from potstill.train.loop import train
from potstill.train.settings import CorrectionConfig, TrainConfig

__all__ = ["CorrectionConfig", "TrainConfig", "Trained", "train"]
