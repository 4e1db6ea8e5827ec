"""The recipe: load a YAML file, apply overrides, validate, and dump it again.

Every message starts with the dotted key (``train.learning_rate: must be > 0, got -1``).
"""

from potstill.config.consistency import check_effect
from potstill.config.load import dump, from_mapping, load, shipped_recipes
from potstill.config.recipe import DetectionRecipe, ImageRecipe, LanguageRecipe, Recipe
from potstill.config.yaml_text import parse_yaml

__all__ = [
    "DetectionRecipe",
    "ImageRecipe",
    "LanguageRecipe",
    "Recipe",
    "check_effect",
    "dump",
    "from_mapping",
    "load",
    "parse_yaml",
    "shipped_recipes",
]
