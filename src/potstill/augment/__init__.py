"""Views: what happens to training images before all networks see them."""

from potstill.augment.draws import uniform
from potstill.augment.scene import Scene
from potstill.augment.settings import AugmentConfig
from potstill.augment.text import TextAugment
from potstill.augment.view import Augment

__all__ = ["Augment", "AugmentConfig", "Scene", "TextAugment", "uniform"]
