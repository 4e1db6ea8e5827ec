"""Generators from a recipe: three kinds of data, a killed run, bad input."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from potstill.assembly.load import load_experiment
from potstill.batch import Batch
from potstill.config import ImageRecipe, from_mapping, load, parse_yaml
from potstill.errors import UserError
from potstill.models.discriminators import PatchDiscriminator
from potstill.models.generators import StyleGenerator
from potstill.run import load_student, run
from potstill.schemes import signs
from tests.killing import killed_after

SIDE = 24
RECIPE = """task: image_to_image
data: {path: inputs, crop: 16}
augment: {flip: 0.5}
teacher: {model: "nets.py:large", weights: teacher.safetensors}
student: {model: "nets.py:small"}
features: {model: "nets.py:eyes", weights: eyes.safetensors, layers: ["0", "2"]}
scheme:
  kind: adversarial
  weight: 0.1
  discriminator: {model: "nets.py:PatchDiscriminator", arguments: {width: 4, layers: 1}}
distill:
  image_l1: {weight: 10}
  feature_mse: {weight: 0.1}
train: {steps: 4, batch_size: 4, optimizer: adamw, learning_rate: 0.003, precision: float32}
"""
NETS = """
from functools import partial

from torch import nn

from potstill.models.discriminators import PatchDiscriminator
from potstill.models.generators import StyleGenerator
from tests.killing import killed_after

large = partial(StyleGenerator, width=4, blocks=2, kernel=3)
small = partial(StyleGenerator, width=2, blocks=2, kernel=3)


def eyes():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 3, stride=2))


def narrow():
    return nn.Conv2d(3, 3, 3)


def silent():
    return nn.Conv2d(3, 1, 3).requires_grad_(False)


class Endless(nn.Conv2d):
    def __init__(self):
        super().__init__(3, 1, 3)

    def forward(self, images):
        return super().forward(images) / 0


class Named(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(3, 3, 1)

    def forward(self, images):
        return {"image": self.layer(images)}
"""


def pictures(folder: Path, counts: dict[str, int], **kept: Any) -> None:
    """Smooth random images of unequal sides."""
    rng = np.random.default_rng(0)
    for part, count in counts.items():
        (folder / part).mkdir(parents=True)
        for number in range(count):
            coarse = rng.integers(0, 255, (4, 5, 3), dtype=np.uint8)
            image = Image.fromarray(coarse).resize((SIDE + 6 * (number % 2), SIDE), Image.Resampling.BILINEAR)
            image.convert(kept.get("mode", "RGB")).save(folder / part / f"{number:02}.png")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder of data and networks, as recipes name them."""
    pictures(tmp_path / "inputs", {"train": 8, "val": 4, "test": 6})
    (tmp_path / "nets.py").write_text(NETS)
    torch.manual_seed(1)
    save_file(StyleGenerator(width=4, blocks=2, kernel=3).state_dict(), tmp_path / "teacher.safetensors")
    scope: dict[str, Any] = {}
    exec(NETS, scope)
    save_file(scope["eyes"]().state_dict(), tmp_path / "eyes.safetensors")
    return tmp_path


def go(place: Path, *overrides: str, out: str = "run", **options: Any) -> dict[str, Any]:
    (place / "recipe.yaml").write_text(RECIPE)
    quiet: Callable[[str], None] = lambda line: None  # noqa: E731
    done = run(place / "recipe.yaml", data=place, out=place / out, overrides=overrides, echo=quiet, **options)
    return done.data


def rows_of(place: Path, arm: str) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (place / "run" / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["arm"] == arm and "parts" in row]


def test_inputs_alone_learn_from_the_teachers_images(place: Path) -> None:
    result = go(place)
    assert result["metric"] == "psnr"
    assert result["models"]["teacher"]["psnr"] == 100.0
    assert 0 < result["models"]["student"]["psnr"] < 60
    assert result["models"]["student"]["features"] == "eyes"
    assert set(result["gains"]) == {"ssim", "perceptual", "kid"}
    assert set(rows_of(place, "control")[0]["parts"]) == {"image_l1"}
    parts = {"image_l1", "feature_mse", "adversarial", "discriminator", "variety"}
    assert set(rows_of(place, "student")[0]["parts"]) == parts
    page = (place / "run" / "report.html").read_text()
    assert page.count('class="panes"') == 5
    for shown in ('alt="input"', 'alt="teacher"', "differences of the control", "differences of the student"):
        assert page.count(shown) == 5
    assert 'id="zoom"' in page
    for part in parts:  # of both phases
        assert f"<h3>{part} <small>" in page
    assert "psnr against" not in page.lower()


@pytest.mark.parametrize("degrade", ["grey", "low_resolution", "edges"])
def test_a_degradation_makes_pairs(place: Path, degrade: str) -> None:
    go(
        place,
        f"data.degrade={degrade}",
        "distill.labels.weight=20",
        "scheme.conditional=true",
        "train.steps=2",
    )
    assert set(rows_of(place, "control")[0]["parts"]) == {"labels", "adversarial", "discriminator", "variety"}
    assert {"labels", "image_l1", "feature_mse"} < set(rows_of(place, "student")[0]["parts"])


def test_paired_folders_and_no_teacher(place: Path) -> None:
    pictures(place / "targets", {"train": 8, "val": 4, "test": 6}, mode="L")
    overrides = ("data.targets=targets", "teacher=null", "distill={labels: {weight: 20}}", "scheme.r1=1")
    result = go(place, *overrides, "train.ema=0.5", control=False)
    assert set(result["models"]) == {"student"}
    assert "r1" in rows_of(place, "student")[0]["parts"]


def test_real_images_of_another_folder(place: Path) -> None:
    pictures(place / "others", {"train": 11})
    result = go(place, "data.real=others", "data.crops=2", "train.steps=6")
    assert result["models"]["teacher"]["psnr"] == 100.0  # the reference is the teacher's image
    assert set(rows_of(place, "control")[0]["parts"]) == {"image_l1"}
    assert "labels" not in rows_of(place, "student")[0]["parts"]
    recipe = {**parse_yaml(RECIPE, "recipe"), "data": {"path": "inputs", "real": "others", "crop": 16}}
    experiment = load_experiment(from_mapping(recipe), [place])
    train, test = experiment.splits.train, experiment.splits.test
    assert len(train) == 11  # as many as there are real ones, though there are 8 inputs
    task = experiment.task.seeded(0, len(train))
    rows = train.__getitems__([0, 8])
    assert torch.equal(rows[0][0], rows[0][1])  # the inputs begin anew
    assert not torch.equal(rows[1][0], rows[1][1])
    batch = task.training_batch(*rows, 0)
    assert batch.target is not None
    whole = rows[1].float() / 255
    places = itertools.product(range(9), range(9))
    cuts = [whole[0, :, top : top + 16, left : left + 16] for top, left in places]
    assert any(torch.equal(batch.target[0], cut) for cut in cuts)
    assert task.plain_batch(*test.__getitems__([0])).target is None


def test_without_truth_and_adversary_there_is_no_control(place: Path) -> None:
    result = go(place, "scheme=offline", "train.steps=2")
    assert set(result["models"]) == {"teacher", "student"}
    assert "nothing to learn from" in result["reason"]


def test_what_other_eyes_see_is_a_term(place: Path) -> None:
    go(place, "distill={image_l1: {weight: 10}, perceptual: {weight: 2}}", "train.steps=3")
    parts = [row["parts"] for row in rows_of(place, "student")]
    assert all(part["perceptual"] > 0 for part in parts)
    assert "perceptual" not in rows_of(place, "control")[0]["parts"]


def test_a_student_from_the_teachers_channels(place: Path) -> None:
    result = go(place, "student={width: auto, target: {parameters: 0.4}}", "train.steps=2", control=False)
    ratio = result["models"]["student"]["parameters"] / result["models"]["teacher"]["parameters"]
    assert 0.2 < ratio <= 0.4
    page = (place / "run" / "report.html").read_text()
    assert "channels of the teacher" in page


def test_both_arms_start_from_the_teachers_channels(place: Path) -> None:
    recipe = {**parse_yaml(RECIPE, "recipe"), "student": {"width": 2}}
    experiment = load_experiment(from_mapping(recipe), [place])
    control, student = (experiment.scheme(arm, 3).student.state_dict() for arm in ("control", "student"))
    theirs = load_file(place / "teacher.safetensors")
    for name, weight in student.items():
        assert torch.equal(control[name], weight)
        assert torch.isin(weight, theirs[name]).all()


def test_a_width_that_was_timed_stays_what_it_was(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = iter([2, 1])
    chosen = lambda *parts: (next(found), "width: auto is timed")  # noqa: E731
    monkeypatch.setattr("potstill.assembly.generators.fitting", chosen)
    options = ("student={width: auto, target: {latency_ms: 3}}", "train.steps=2")
    first = go(place, *options, control=False)
    kept = load(place / "run" / "recipe.yaml")
    assert isinstance(kept, ImageRecipe)
    assert kept.student.width == 2
    assert "auto is timed" in (place / "run" / "report.html").read_text()
    (place / "run" / "result.json").unlink()
    again = go(place, *options, control=False, resume=True)  # without another look at the clock
    for result in (first, again):
        assert result["models"]["student"]["parameters"] == first["models"]["student"]["parameters"]
    assert load_student(place / "run", place).student.enter[0].out_channels == 2


def test_both_phases_resume_exactly(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ("train.checkpoint_every=2", "train.ema=0.5", "train.steps=5", "scheme.r1=1")
    options += ("scheme.discriminator.arguments={width: 4, layers: 1, spectral_norm: true}",)
    go(place, *options)
    with killed_after(3, monkeypatch):
        go(place, *options, out="cut", resume=True)
    go(place, *options, out="cut", resume=True)
    for name in ("last", "best"):
        path = Path("checkpoints", "student-0", f"{name}.safetensors")
        ours, theirs = load_file(place / "run" / path), load_file(place / "cut" / path)
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    lines = [(place / name / "metrics.jsonl").read_text().splitlines() for name in ("run", "cut")]
    kept = [
        [json.loads(line)["parts"] for line in some if '"parts"' in line and '"student"' in line]
        for some in lines
    ]
    assert kept[0] == kept[1]


def test_a_training_says_what_goes_wrong_in_its_game(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(signs, "PATIENCE", 2)
    worse = {name: (1e9, words) for name, (_, words) in signs.SIGNS.items()}
    monkeypatch.setattr(signs, "SIGNS", worse)
    go(place, control=False)
    said = capsys.readouterr().err
    for notice in ("step 2: the discriminator wins", "step 2: mode collapse"):
        assert said.count(notice) == 1


def test_a_discriminator_that_is_not_finite_is_named(place: Path) -> None:
    with pytest.raises(UserError, match=r"train: the loss is not finite at step 1 of 4: adversarial"):
        go(place, "scheme.discriminator={model: 'nets.py:Endless'}", control=False)


def refused(place: Path, match: str, *overrides: str) -> None:
    raw = parse_yaml(RECIPE, "recipe")
    (place / "recipe.yaml").write_text(RECIPE)
    with pytest.raises(UserError, match=match):
        run(place / "recipe.yaml", data=place, out=place / "bad", overrides=overrides, dry=True)
    assert raw
    assert not (place / "bad").exists()


@pytest.mark.parametrize(
    ("match", "overrides"),
    [
        (r"data\.size: the style generator needs sides that are multiples of 4, got 22x22", ["data.size=22"]),
        (r"data\.crop: must be at most 24", ["data.crop=32"]),
        (r"data\.size: .* got 18x18; in training data\.crop is the side", ["data.crop=18"]),
        (r"data\.size: must be from 11, where SSIM begins, got 8", ["data.size=8", "data.crop=8"]),
        (r"data\.factor: is for data\.degrade: low_resolution", ["data.degrade=grey", "data.factor=2"]),
        (r"data\.factor: must be at most 16, .* got 17", ["data.degrade=low_resolution", "data.factor=17"]),
        (r"train\.batch_size: must be at most the 8", ["train.batch_size=9"]),
        (
            r"scheme: adversarial cannot run its phase 'generator' on images \(4, 3, 4, 4\) of training",
            ["data.crop=4"],
        ),
        (
            r"scheme: .* phase 'generator' on images \(4, 3, 16, 16\) of training: ValueError",
            ["scheme.discriminator.arguments={width: 4, layers: 3}"],  # enough for evaluation, not for crops
        ),
        (r"scheme\.discriminator: cannot judge", ["scheme.discriminator.arguments={width: 4, layers: 4}"]),
        (
            r"scheme\.discriminator\.model: .* layers from 0, got 4 and -1",
            ["scheme.discriminator.arguments={width: 4, layers: -1}"],
        ),
        (
            r"scheme\.discriminator: has no parameters that could learn",
            ["scheme.discriminator={model: 'nets.py:silent'}"],
        ),
        (
            r"scheme\.discriminator\.weights: .* does not fit the network",
            ["scheme.discriminator.weights=teacher.safetensors"],
        ),
        (r"scheme\.discriminator\.mean: has no meaning", ["scheme.discriminator.mean=[0.5]"]),
        (r"teacher\.weights: .* does not fit the network", ["teacher.model=nets.py:small"]),
        (r"scheme\.discriminator: cannot judge", ["scheme.discriminator.arguments={inputs: 1}"]),
        (
            r"student\.model: expected images \(2, 3, 24, 24\), got \(2, 3, 22, 22\)",
            ["student.model=nets.py:narrow"],
        ),
        (r"student\.mean: has no meaning", ["student.mean=[0.5]"]),
        (r"student\.tokenizer: is for networks of texts", ["student.tokenizer=words"]),
        (r"student\.weights: has no meaning", ["student={width: 2, weights: teacher.safetensors}"]),
        (r"student: would be its teacher again", ["student={}"]),
        (r"distill\.kl: kl compares classes", ["distill.kl.weight=1"]),
        (
            "prune: needs training data with labels",
            ["scheme=offline", "student.model=nets.py:large", "prune={target: {macs: 0.5}}"],
        ),
        (r"augment: mixing has no meaning", ["augment={mixup: {}}"]),
        (r"scheme: expected adversarial, offline or labels", ["scheme={kind: mutual}", "teacher=null"]),
        (r"teacher: missing; without data.targets", ["teacher=null"]),
        (r"data\.degrade: has no meaning beside", ["data.degrade=grey", "data.targets=inputs"]),
        (r"data\.real: has no meaning beside true", ["data.real=inputs", "data.degrade=grey"]),
        (r"data\.real: is for scheme: adversarial", ["data.real=inputs", "scheme=offline"]),
        (r"data\.real: .nowhere. not found", ["data.real=nowhere"]),
        (r"scheme\.conditional: has no meaning", ["data.real=inputs", "scheme.conditional=true"]),
        (r"distill\.labels: has no meaning", ["distill.labels.weight=1"]),
        (r"features\.weights: missing", ["features.weights=null"]),
        (r"data\.path: .* found no images to train on", ["data.path=."]),
    ],
)
def test_bad_recipes_are_refused(place: Path, match: str, overrides: list[str]) -> None:
    refused(place, match, *overrides)


def test_a_generator_that_names_its_image(place: Path) -> None:
    result = go(place, "student.model=nets.py:Named", "train.steps=2", "distill={image_l1: {}}")
    assert 0 < result["models"]["student"]["psnr"] < 60


def test_relations_between_images_and_channels_are_terms(place: Path) -> None:
    terms = "distill={image_l1: {weight: 10}, similarity_preserving: {}, gram: {}}"
    go(place, terms, "train.steps=2", control=False)
    parts = [row["parts"] for row in rows_of(place, "student")]
    assert all(part["similarity_preserving"] > 0 and part["gram"] > 0 for part in parts)


def test_few_test_images_are_no_set(place: Path) -> None:
    for number in range(1, 6):
        (place / "inputs" / "test" / f"{number:02}.png").unlink()
    refused(place, r"data\.path: expected at least two images in the test part, got one")
    pictures(place / "inputs" / "more", {"test": 3})
    shutil.copy(place / "inputs/more/test/01.png", place / "inputs/test/01.png")
    result = go(place, "train.steps=2")
    assert set(result["gains"]) == {"ssim", "perceptual"}
    assert "kid" not in result["models"]["student"]
    assert "2 test images are too few to compare as sets" in (place / "run" / "report.html").read_text()


def test_unpaired_names_are_named_ten_of_them(place: Path) -> None:
    pictures(place / "many", {"train": 14, "val": 4, "test": 6})
    pictures(place / "few", {"train": 2, "val": 4, "test": 6})
    wanted = r"data\.targets: train: no true image for 02, 03, 04, 05, 06, 07, 08, 09, 10, 11 and 2 more"
    refused(place, wanted, "data.path=many", "data.targets=few")


def test_alpha_grey_and_sixteen_bits_are_read_and_noted(place: Path) -> None:
    train = place / "inputs" / "train"
    Image.open(train / "00.png").convert("RGBA").save(train / "00.png")
    Image.open(train / "01.png").convert("L").save(train / "01.png")
    deep = np.asarray(Image.open(train / "02.png").convert("L")).astype(np.uint16) * 257
    Image.fromarray(deep).save(train / "02.png")
    experiment = load_experiment(from_mapping(parse_yaml(RECIPE, "recipe")), [place])
    notes = " ".join(experiment.notes)
    for wanted in ("1 of 18 images have an alpha", "1 of 18 images have 16 bits", "2 of 18 images are grey"):
        assert wanted in notes
    images, _, _ = experiment.splits.train.__getitems__([1, 2])
    assert images.shape == (2, 3, SIDE, SIDE)
    assert torch.equal(images[:, 0], images[:, 2])
    again = np.asarray(Image.open(train / "01.png"))[:, 3 : 3 + SIDE]
    assert np.array_equal(images[0, 0].numpy(), again)


def test_crops_are_a_pure_function_of_seed_view_and_sample(place: Path) -> None:
    recipe = from_mapping(
        {**parse_yaml(RECIPE, "recipe"), "data": {"path": "inputs", "crop": 16, "crops": 3}}
    )
    experiment = load_experiment(recipe, [place])
    train = experiment.splits.train
    assert len(train) == 24
    task = experiment.task.seeded(3, len(train))
    together = task.training_batch(*train.__getitems__([1, 9, 17]), 5).tensor("student")
    alone = task.training_batch(*train.__getitems__([9]), 5).tensor("student")
    torch.testing.assert_close(together[1:2], alone, rtol=0, atol=0)
    assert not torch.equal(together[0], together[1])  # of one image, other squares
    later = task.training_batch(*train.__getitems__([9]), 6).tensor("student")
    assert not torch.equal(alone, later)


def test_a_pair_moves_together_and_colours_change_the_input_alone(place: Path) -> None:
    shutil.copytree(place / "inputs", place / "targets")
    data = {"path": "inputs", "targets": "targets", "crop": 16, "crops": 3}
    augment = {"flip": 0.5, "crop": 2, "rotation": 20}

    def batch_of(**more: Any) -> Batch:
        recipe = {**parse_yaml(RECIPE, "recipe"), "data": data, "augment": {**augment, **more}}
        experiment = load_experiment(from_mapping(recipe), [place])
        train = experiment.splits.train
        task = experiment.task.seeded(3, len(train))
        batch: Batch = task.training_batch(*train.__getitems__(list(range(12))), 1)
        return batch

    moved, coloured = batch_of(), batch_of(colour={"brightness": 0.5, "probability": 1.0})
    assert moved.target is not None
    assert coloured.target is not None
    assert torch.equal(moved.tensor("student"), moved.target)
    assert torch.equal(coloured.target, moved.target)
    assert not torch.equal(coloured.tensor("student"), moved.target)


def test_a_discriminator_of_the_users_own_weights(place: Path) -> None:
    torch.manual_seed(5)
    judge = PatchDiscriminator(width=4, layers=1)
    save_file(judge.state_dict(), place / "judge.safetensors")
    recipe = parse_yaml(RECIPE, "recipe")
    recipe["scheme"]["discriminator"]["weights"] = "judge.safetensors"
    scheme = load_experiment(from_mapping(recipe), [place]).scheme("student", 0)
    for name, tensor in scheme.judge.state_dict().items():
        assert torch.equal(tensor, judge.state_dict()[name])


def test_a_generator_with_true_images_may_be_pruned(place: Path) -> None:
    raw = {**parse_yaml(RECIPE, "recipe"), "scheme": "offline", "distill": {"image_l1": {}, "labels": {}}}
    del raw["student"]
    raw["data"] = {"path": "inputs", "crop": 16, "degrade": "grey"}
    raw["prune"] = {"target": {"parameters": 0.6}, "steps": 1, "calibration": 4, "trial_steps": 0}
    (place / "prune.yaml").write_text(json.dumps(raw))
    done = run(place / "prune.yaml", data=place, out=place / "run", echo=lambda line: None)
    models = done.data["models"]
    assert done.data["prune"]["reached"] == models["student"]["parameters"]
    assert models["student"]["parameters"] <= 0.6 * models["teacher"]["parameters"]
    student = load_student(place / "run", place).student
    images = torch.rand(1, 3, SIDE, SIDE)
    assert done.student is not None
    assert torch.equal(student(images), done.student(images))
    raw["data"] = {"path": "inputs", "crop": 16}
    (place / "prune.yaml").write_text(json.dumps({**raw, "distill": {"image_l1": {}}}))
    with pytest.raises(UserError, match="prune: needs training data with labels"):
        run(place / "prune.yaml", data=place, out=place / "other", echo=lambda line: None)
