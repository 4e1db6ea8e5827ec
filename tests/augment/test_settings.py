"""What a recipe may say under ``augment``, and what it is told where it does not hold."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from potstill.augment import Augment, AugmentConfig
from potstill.augment.colour import Colour
from potstill.augment.erasing import Cutout
from potstill.augment.geometry import Rotation
from potstill.augment.mixing import Mixup
from potstill.augment.policies import TrivialAugment
from potstill.config import dump, from_mapping, parse_yaml
from potstill.errors import UserError
from potstill.run import run
from potstill.sections import read_section


def read(**given: Any) -> AugmentConfig:
    made: AugmentConfig = read_section(AugmentConfig, given, "augment")
    return made


def test_a_number_stands_for_the_first_field() -> None:
    found = read(rotation=15, mixup=0.2, cutout=4, trivial_augment=0.5, colour={"hue": 0.1})
    assert found == AugmentConfig(
        rotation=Rotation(degrees=15),
        mixup=Mixup(alpha=0.2),
        cutout=Cutout(size=4),
        trivial_augment=TrivialAugment(probability=0.5),
        colour=Colour(hue=0.1),
    )
    assert read(rotation={"degrees": 15, "probability": 0.5}).rotation == Rotation(
        degrees=15, probability=0.5
    )
    assert read(rand_augment={}).rand_augment is not None
    assert read(rotation=None).rotation is None


def test_a_recipe_reads_its_own_words_back() -> None:
    raw = {
        "data": {"kind": "arrays", "path": "x"},
        "teacher": {"model": "a:b", "weights": "w"},
        "student": {"model": "a:b"},
        "augment": {
            "crop": 2,
            "rotation": 15,
            "erasing": 0.25,
            "mixup": 1,
            "order": ["rotation", "crop", "erasing"],
        },
    }
    recipe = from_mapping(raw)
    assert from_mapping(parse_yaml(dump(recipe), "again")) == recipe


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"rotaton": 15}, r"augment.rotaton: unknown key; did you mean 'rotation'\?"),
        ({"rotation": {"degres": 3}}, r"augment.rotation.degres: unknown key; did you mean 'degrees'\?"),
        ({"rotation": -3}, "augment.rotation.degrees: must be >= 0, got -3"),
        ({"rotation": {}}, "augment.rotation.degrees: missing"),
        ({"rotation": True}, "augment.rotation: expected a mapping of keys, got bool True"),
        ({"flip": 1.5}, "augment.flip: must be <= 1, got 1.5"),
        ({"cutout": 0}, "augment.cutout.size: must be >= 1, got 0"),
        ({"cutout": {"size": 3, "fill": "meen"}}, r"augment.cutout.fill: expected one of .* 'mean'\?"),
        ({"colour": {"hue": 0.7}}, "augment.colour.hue: must be <= 0.5, got 0.7"),
        ({"resized_crop": {"ratio": [2, 1]}}, "augment.resized_crop: ratio: expected two numbers above 0"),
        ({"erasing": {"area": [0.5, 0.2]}}, "augment.erasing: area: expected two shares above 0 in order"),
        ({"rand_augment": 31}, "augment.rand_augment.magnitude: must be <= 30, got 31"),
        ({"mixup": 0}, "augment.mixup.alpha: must be > 0, got 0"),
        ({"mixup": 1, "cutmix": 1}, "augment.cutmix: never happens while mixup.probability is 1"),
        (
            {"flip": 0.5, "order": ["flop"]},
            r"augment.order.0: 'flop': no transform that is set; did you mean 'flip'\?",
        ),
        ({"flip": 0.5, "order": ["crop"]}, "augment.order.0: 'crop': no transform that is set; known: flip"),
        ({"mixup": 1, "order": ["mixup"]}, "augment.order.0: 'mixup': mixing always comes last"),
        (
            {"flip": 1, "crop": 1, "order": ["flip"]},
            "augment.order: expected each of crop, flip once, got flip",
        ),
    ],
)
def test_what_does_not_hold_is_said_at_its_key(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read(**given)


@pytest.mark.parametrize(
    ("given", "floats", "message"),
    [
        ({"cutout": 9}, False, r"augment.cutout: must be at most the image's side \(8x8\), got 9"),
        ({"crop": 8}, False, r"augment.crop: must be smaller than the image \(8x8\), got 8"),
        ({"colour": 0.2}, True, "augment.colour: needs images of integers 0 to 255"),
        ({"trivial_augment": {}}, True, "augment.trivial_augment: needs images of integers 0 to 255"),
        ({"erasing": {"fill": "mean"}}, True, "augment.erasing: fill: mean needs images of integers"),
    ],
)
def test_images_that_cannot_be_changed_are_refused(given: dict[str, Any], floats: bool, message: str) -> None:
    images = torch.zeros(2, 3, 8, 8, dtype=torch.float32 if floats else torch.uint8)
    with pytest.raises(UserError, match=message):
        Augment(read(**given), seed=0)(images, torch.arange(2), 0)


def test_they_are_refused_before_a_run_starts(tiny: Any, tmp_path: Any) -> None:
    overrides = ["augment={cutout: {size: 7, probability: 0.001}}"]
    with pytest.raises(UserError, match=r"augment.cutout: must be at most the image's side \(6x6\), got 7"):
        run(tiny.recipe, data=tiny.root, out=tmp_path / "run", overrides=overrides, echo=lambda line: None)
    assert not (tmp_path / "run").exists()
