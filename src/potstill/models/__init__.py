"""Loading any network by name, its weights and its preprocessing; and small reference networks."""

from potstill.models.load import ModelConfig, build
from potstill.models.preprocessing import Preprocessing, preprocessing_of
from potstill.models.weights import fingerprint, load_weights, save_weights

__all__ = [
    "ModelConfig",
    "Preprocessing",
    "build",
    "fingerprint",
    "load_weights",
    "preprocessing_of",
    "save_weights",
]
