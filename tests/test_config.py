"""The recipe: what it takes, what it refuses and how it says so."""

from __future__ import annotations

from pathlib import Path

import pytest

from potstill.config import dump, from_mapping, load, shipped_recipes
from potstill.errors import UserError

RECIPE = """
task: classification
data: {kind: arrays, path: digits}
teacher: {model: "a:b", weights: t.safetensors}
student: {model: "a:c"}
distill:
  labels: {weight: 0.1}
  kl: {weight: 0.9, temperature: 4}
train: {epochs: 3, learning_rate: 1e-2}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    return path


def test_a_recipe_loads_with_defaults_and_scientific_numbers(recipe: Path) -> None:
    loaded = load(recipe)
    assert loaded.train.learning_rate == pytest.approx(0.01)
    assert loaded.train.epochs == 3
    assert loaded.seeds == 1
    assert loaded.distill["kl"] == {"weight": 0.9, "temperature": 4}


def test_overrides_change_anything(recipe: Path) -> None:
    loaded = load(recipe, ["train.epochs=0.5", "distill.kl.temperature=2", "seeds=2", "augment.crop=2"])
    assert (loaded.train.epochs, loaded.seeds, loaded.augment.crop) == (0.5, 2, 2)
    assert loaded.distill["kl"]["temperature"] == 2


def test_a_dumped_recipe_loads_to_an_equal_one(recipe: Path, tmp_path: Path) -> None:
    loaded = load(recipe, ["notes=[one, two]"])
    again = tmp_path / "again.yaml"
    again.write_text(dump(loaded))
    assert load(again) == loaded


@pytest.mark.parametrize("name", shipped_recipes())
def test_shipped_recipes_load_and_are_short(name: str) -> None:
    load(name)
    import importlib.resources

    text = (importlib.resources.files("potstill") / "recipes" / f"{name}.yaml").read_text()
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    if name.startswith("cifar10"):
        assert len(lines) <= 12


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trian.epochs=3", "trian: unknown key; did you mean 'train'?"),
        ("train.learning_rat=3", "train.learning_rat: unknown key; did you mean 'learning_rate'?"),
        ("train.learning_rate=fast", "train.learning_rate: expected a number, got 'fast'"),
        ("train.learning_rate=-1", "train.learning_rate: must be > 0, got -1"),
        ("train.epochs=true", "train.epochs: expected a number, got True"),
        (
            "train.optimizer=sdg",
            "train.optimizer: expected one of sgd, adamw, got 'sdg'; did you mean 'sgd'?",
        ),
        ("seeds=0", "seeds: must be >= 1, got 0"),
        ("train=3", "train: expected a mapping of keys, got int 3"),
        ("student={}", "student.model: missing; this key has no default"),
        (
            "task=segmentation",
            "task: expected one of classification, text_classification, language_modeling, detection, "
            "image_to_image, got 'segmentation'",
        ),
        ("distill.kll={}", "distill.kll: unknown loss; did you mean 'kl'?"),
        ("distill.kl.temprature=3", "distill.kl.temprature: unknown option; did you mean 'temperature'?"),
        ("distill.kl.temperature=-1", "distill.kl.temperature: must be > 0, got -1"),
        ("train.epochs", "--set: expected key=value, got 'train.epochs'"),
        ("train.epochs.x=3", "train.epochs: expected a mapping to set 'x' in, got 3"),
    ],
)
def test_mistakes_are_named_by_their_key(recipe: Path, override: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        load(recipe, [override])
    assert str(caught.value).startswith(message)


def test_a_recipe_that_is_not_there_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="did you mean 'cifar10-resnet8'"):
        load("cifar10-resnet9")
    with pytest.raises(UserError, match="got a folder"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected a mapping of keys, got nothing"),
        ("- 1", r"expected a mapping of keys, got list \[1\]"),
        ("a: [", "not valid YAML"),
        (RECIPE + "task: classification\n", "task: key occurs twice"),
    ],
)
def test_files_that_are_no_recipes(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        load(path)


def test_a_mapping_needs_its_sections() -> None:
    with pytest.raises(UserError, match="data: missing"):
        from_mapping({"teacher": {"model": "a:b"}, "student": {"model": "a:b"}})
