"""Image data: five ways to name it, one way to read it."""

from potstill.data.dataset import ImageSet, SampleSet
from potstill.data.load import DataConfig, Splits, load_data

__all__ = ["DataConfig", "ImageSet", "SampleSet", "Splits", "load_data"]
