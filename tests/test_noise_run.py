"""Images from noise by a recipe: a game without a teacher, one with, a killed run, bad input, the report."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from potstill.assembly.load import load_experiment
from potstill.config import from_mapping, parse_yaml
from potstill.deploy.generator_export import export_generator
from potstill.errors import UserError
from potstill.experiment import Experiment
from potstill.metrics.resemblance import kernel_distance
from potstill.models.generators import LatentGenerator
from potstill.models.lenet import LeNet
from potstill.results.drawings import between
from potstill.run import load_student, run
from tests.killing import killed_after

GAN = """task: image_to_image
data: {kind: arrays, path: digits, latent: 6}
features:
  {model: "potstill.models.lenet:LeNet", arguments: {width: 2}, weights: lenet.safetensors,
   layers: [features]}
scheme: {kind: adversarial, discriminator: {model: "potstill.models.discriminators:PatchDiscriminator",
  arguments: {width: 4, layers: 1}}}
student: {model: "potstill.models.generators:LatentGenerator", arguments: {width: 2}}
train: {steps: 4, batch_size: 4, optimizer: adamw, learning_rate: 0.003, precision: float32}
"""
TEACHER = (
    'teacher={model: "potstill.models.generators:LatentGenerator", arguments: {width: 3}, '
    "weights: teacher.safetensors}"
)
TERMS = "distill={image_l1: {weight: 10}, feature_mse: {weight: 1}}"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Digits that are noise, a LeNet and a teacher that learnt nothing."""
    rng = np.random.default_rng(0)
    (tmp_path / "digits").mkdir()
    for part, count in (("train", 20), ("test", 8)):
        images = rng.integers(0, 255, (count, 28, 28), dtype=np.uint8)
        np.save(tmp_path / "digits" / f"{part}_images.npy", images)
        np.save(tmp_path / "digits" / f"{part}_labels.npy", np.arange(count) % 3)
    torch.manual_seed(0)
    save_file(LeNet(width=2).state_dict(), tmp_path / "lenet.safetensors")
    save_file(LatentGenerator(width=3, inputs=6).state_dict(), tmp_path / "teacher.safetensors")
    (tmp_path / "gan.yaml").write_text(GAN)
    return tmp_path


def go(place: Path, *overrides: str, out: str = "run", **options: Any) -> dict[str, Any]:
    quiet: Callable[[str], None] = lambda line: None  # noqa: E731
    done = run(place / "gan.yaml", data=place, out=place / out, overrides=overrides, echo=quiet, **options)
    return done.data


def loaded(place: Path, **more: Any) -> Experiment:
    return load_experiment(from_mapping({**parse_yaml(GAN, "recipe"), **more}), [place])


def test_a_game_from_noise_makes_a_teacher(place: Path) -> None:
    result = go(place)
    assert set(result["models"]) == {"student"}
    assert (result["metric"], result["higher_is_better"], result["verdict"]) == ("kid", False, None)
    assert "without a teacher" in result["reason"]
    assert result["models"]["student"]["features"] == "LeNet"
    page = (place / "run" / "report.html").read_text()
    assert "What they make of noise" in page
    assert page.count('class="sheet"') == 3  # real, student, and what lies between
    weights = "scheme.discriminator.weights=run/discriminator.safetensors"
    assert go(place, weights, out="again")["verdict"] is None


def test_a_student_of_a_gan_beside_a_game_of_its_own(place: Path) -> None:
    result = go(place, TEACHER, TERMS, "seeds=2")
    assert set(result["models"]) == {"teacher", "control", "student"}
    student, control = (result["models"][arm] for arm in ("student", "control"))
    assert result["gain"] == pytest.approx(control["kid"] - student["kid"])
    assert student["interval"][0] < student["kid"] < student["interval"][1]
    page = (place / "run" / "report.html").read_text()
    assert page.count('class="sheet"') == 7
    assert "Down and to the left is better" in page
    assert "KID of the teacher" in page
    arms = [
        load_file(place / f"run/checkpoints/{arm}-0/discriminator.safetensors")
        for arm in ("control", "student")
    ]
    assert any(not torch.equal(arms[0][key], arms[1][key]) for key in arms[0])


def test_the_distance_is_that_of_the_whole_sets(place: Path) -> None:
    experiment = loaded(place)
    part = experiment.evaluation(experiment.splits.test)
    answers = experiment.task.predict(experiment.student(0), part, "student").numpy()
    own, real = np.split(answers, 2, axis=1)
    wanted = kernel_distance(own, real)
    assert experiment.task.value(answers, part.dataset) == pytest.approx(wanted)
    assert experiment.task.per_sample(answers, part.dataset).mean() == pytest.approx(-wanted)


def test_noise_is_a_pure_function_of_seed_view_and_sample(place: Path) -> None:
    experiment = loaded(place)
    train, task = experiment.splits.train, experiment.task.seeded(3, 18)

    def noise(task: Any, rows: list[int], view: int) -> Tensor:
        batch = task.training_batch(*train.__getitems__(rows), view)
        found: Tensor = batch.tensor("student")
        return found

    together = noise(task, [1, 4, 7], 2)
    assert together.shape == (3, 6)
    assert torch.equal(together[1:2], noise(task, [4], 2))
    for other in (noise(task, [4], 3), noise(experiment.task.seeded(4, 18), [4], 2), noise(task, [5], 2)):
        assert not torch.isin(other, together).any()
    plain = [
        experiment.task.plain_batch(*train.__getitems__(rows)).tensor("student") for rows in ([0, 4], [4])
    ]
    assert torch.equal(plain[0][1:], plain[1])
    many = torch.cat([noise(task, list(range(18)), view) for view in range(100)])
    assert abs(float(many.mean())) < 0.05
    assert abs(float(many.std()) - 1) < 0.05


def test_real_images_are_no_truth(place: Path) -> None:
    experiment = loaded(place)
    assert experiment.task.supervised is None
    rows = experiment.splits.train.__getitems__([0, 3])
    batch = experiment.task.seeded(0, 18).training_batch(*rows, 0)
    assert batch.target is not None
    torch.testing.assert_close(batch.target, rows[0].float() / 255)


def test_a_killed_game_goes_on_exactly(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = (TEACHER, TERMS, "train.checkpoint_every=2", "train.ema=0.5", "train.steps=5")
    go(place, *options)
    with killed_after(3, monkeypatch):
        go(place, *options, out="cut", resume=True)
    go(place, *options, out="cut", resume=True)
    for name in ("student", "discriminator"):
        ours, theirs = (load_file(place / out / f"{name}.safetensors") for out in ("run", "cut"))
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_eyes_that_give_vectors_alone_can_be_a_term(place: Path) -> None:
    go(place, TEACHER, "distill={perceptual: {weight: 1}}", "train.steps=2", control=False)
    rows = [json.loads(line) for line in (place / "run" / "metrics.jsonl").read_text().splitlines()]
    assert all(row["parts"]["perceptual"] > 0 for row in rows if "parts" in row)


def test_between_two_noises_all_are_as_long() -> None:
    one, other = torch.randn(2, 64, generator=torch.Generator().manual_seed(0))
    lengths = between(one, other, 9).norm(dim=1)
    assert float(lengths.min()) > 0.95 * float(min(one.norm(), other.norm()))
    torch.testing.assert_close(between(one, other, 9)[[0, -1]], torch.stack([one, other]))


def test_export_is_checked_pixel_by_pixel(place: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    go(place)
    student = load_student(place / "run", place)
    exported = export_generator(student, place / "student.onnx")
    session = onnxruntime.InferenceSession(str(exported.path), providers=["CPUExecutionProvider"])
    noise = torch.randn(3, 6)
    with torch.no_grad():
        wanted = student.student(noise).numpy()
    np.testing.assert_allclose(session.run(None, {"noise": noise.numpy()})[0], wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("match", "overrides"),
    [
        (r"scheme: expected adversarial with data.latent, got labels", ["scheme=labels"]),
        (r"data\.degrade: has no meaning beside data.latent", ["data.degrade=grey"]),
        (r"data\.crop: has no meaning beside data.latent", ["data.crop=20"]),
        (r"student: cannot run on the data's images \(2, 6\)", ["student.arguments={width: 2, inputs: 9}"]),
        (r"teacher\.weights: .* expected \(588, 9\), got \(588, 6\)", [TEACHER, TERMS, "data.latent=9"]),
        (r"train\.batch_size: must be at most the 18", ["train.batch_size=19"]),
        (r"scheme\.discriminator: cannot judge", ["scheme.discriminator.arguments={width: 4, layers: 4}"]),
        (r"student\.model: expected images \(2, 1, 28, 28\)", ["student.arguments={side: 32}"]),
        (r"scheme\.discriminator: cannot judge", ["scheme.conditional=true"]),
        (r"distill\.labels: has no meaning", ["distill={labels: {weight: 1}}"]),
        (r"augment: mixing", ["augment={mixup: {}}"]),
    ],
)
def test_bad_recipes_are_refused(place: Path, match: str, overrides: list[str]) -> None:
    with pytest.raises(UserError, match=match):
        go(place, *overrides, dry=True)


def test_a_colour_generator_and_its_sides() -> None:
    assert LatentGenerator(width=2, outputs=3, side=32)(torch.randn(2, 64)).shape == (2, 3, 32, 32)
    with pytest.raises(ValueError, match="that 4 divides, got 2 and 30"):
        LatentGenerator(width=2, side=30)
