"""Mixtures: partners from the whole set, labels that sum to 1, and what cannot learn from them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from potstill.augment import Augment, AugmentConfig
from potstill.augment.mixing import CutMix, Mixup, mixed_labels
from potstill.batch import Signals
from potstill.config import load
from potstill.data.arrays import ArraySet
from potstill.data.loader import Loader
from potstill.errors import UserError
from potstill.models.preprocessing import Preprocessing
from potstill.run import run
from potstill.schemes.self_taught import SmoothedLabels
from potstill.tasks import Classification
from potstill.teachers import Frozen, MixedAnswers

CLASSES = ("a", "b", "c")
CONFIGS = {
    "mixup": AugmentConfig(mixup=Mixup(alpha=1.0), flip=0.5, crop=1),
    "cutmix": AugmentConfig(cutmix=CutMix(), flip=0.5),
    "both": AugmentConfig(mixup=Mixup(alpha=0.4, probability=0.4), cutmix=CutMix(probability=0.5), crop=2),
}


def data(count: int = 60) -> ArraySet:
    rng = np.random.default_rng(0)
    images = rng.integers(1, 256, (count, 8, 8, 3)).astype(np.uint8)
    return ArraySet(images, rng.integers(0, 3, count), CLASSES, "random")


def views(config: AugmentConfig, batch_size: int, epoch: int = 2, **options: Any) -> dict[int, Any]:
    """What every sample of an epoch becomes: pixels and target, by position."""
    source = data()
    augment = Augment(config, seed=4, samples=len(source))
    view = Preprocessing((0.0,) * 3, (1.0,) * 3)
    task = Classification(class_names=CLASSES, preprocessing={"student": view}, augment=augment)
    loader = Loader(
        source, batch_size=batch_size, seed=options.pop("seed", 0), partners=augment.partners, **options
    )
    seen = {}
    for images, labels, index in loader.epoch(epoch):
        batch = task.training_batch(images, labels, index, epoch)
        assert batch.target is not None
        for row, position in enumerate(batch.index.tolist()):
            seen[position] = (batch.inputs["student"][row], batch.target[row])
    return seen


def assert_same(first: dict[int, Any], second: dict[int, Any]) -> None:
    for position in first.keys() & second.keys():
        for one, other in zip(first[position], second[position], strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_mixtures_do_not_depend_on_batch_size_order_or_ranks(config: AugmentConfig) -> None:
    whole = views(config, 60)
    assert len(whole) == 60
    assert_same(whole, views(config, 7, drop_last=False))
    assert_same(whole, views(config, 1))
    assert_same(whole, views(config, 20, seed=9))
    shares = [views(config, 12, rank=rank, world_size=2) for rank in (0, 1)]
    assert shares[0].keys() | shares[1].keys() == whole.keys()
    for share in shares:
        assert_same(whole, share)
    targets = torch.stack([target for _, target in whole.values()])
    torch.testing.assert_close(targets.sum(dim=1), torch.ones(60))
    assert int((targets.max(dim=1).values < 1).sum()) > 0
    other = views(config, 60, epoch=3)
    assert any(not torch.equal(whole[position][0], other[position][0]) for position in whole)


def test_worker_processes_read_partners_too() -> None:
    class Files(ArraySet):
        in_memory = False  # type: ignore[assignment]

    source = data()
    slow = Files(source.images(range(60)).permute(0, 2, 3, 1).numpy(), source.labels.numpy(), CLASSES, "slow")
    partners = Augment(CONFIGS["both"], seed=4, samples=60).partners
    for workers in (0, 2):
        rows = list(Loader(slow, batch_size=20, seed=0, workers=workers, partners=partners).epoch(1, 1))
        expected = list(Loader(source, batch_size=20, seed=0, partners=partners).epoch(1, 1))
        assert len(rows) == len(expected) == 2
        for one, other in zip(rows, expected, strict=True):
            assert all(torch.equal(*pair) for pair in zip(one, other, strict=True))
        assert len(rows[0][0]) > len(rows[0][2]) == 20


def test_partners_are_other_samples_of_the_whole_set_evenly() -> None:
    augment = Augment(AugmentConfig(mixup=Mixup()), seed=0, samples=5)
    index = torch.arange(5).repeat_interleave(1)
    counts = torch.zeros(5, 5)
    for view in range(2000):
        counts[index, augment.partners(index, view)] += 1
    assert counts.diagonal().sum() == 0
    assert counts[~torch.eye(5, dtype=torch.bool)].tolist() == pytest.approx([500] * 20, rel=0.15)


def test_a_mixup_is_the_weighted_sum_of_two_views() -> None:
    config = AugmentConfig(mixup=Mixup(alpha=1.0), crop=2)
    augment, index = Augment(config, seed=1, samples=60), torch.arange(10, 30)
    source, partners = data(), Augment(config, seed=1, samples=60).partners(index, 3)
    rows = torch.cat([index, partners])
    seen = augment(source.images(rows.tolist()), rows, 3)
    made, target, _ = augment.mix(seen, source.labels[rows], index, 3, classes=60)
    for row in range(20):
        own, other = source.labels[rows[row]], source.labels[rows[20 + row]]
        if own == other:
            continue
        share = float(target[row, own])
        expected = share * seen[row].double() + (1 - share) * seen[20 + row].double()
        assert float((made[row].double() - expected).abs().max()) <= 0.51


def test_a_cutmix_target_counts_pixels() -> None:
    augment = Augment(AugmentConfig(cutmix=CutMix()), seed=1, samples=60)
    index = torch.arange(60)
    partners = augment.partners(index, 0)
    own, other = torch.full((60, 1, 8, 8), 1.0), torch.full((60, 1, 8, 8), 2.0)
    labels = torch.cat([torch.zeros(60), torch.ones(60)]).long()
    assert len(partners) == 60
    made, target, _ = augment.mix(torch.cat([own, other]), labels, index, 0, classes=2)
    torch.testing.assert_close(target[:, 1], (made == 2).float().mean(dim=(1, 2, 3)))
    assert float(target[:, 1].std()) > 0.1
    for box in made[:, 0] == 2:
        assert int(box.sum()) == int(box.any(0).sum() * box.any(1).sum())


@settings(max_examples=25, deadline=None)
@given(st.floats(0.05, 5.0), st.floats(0.0, 1.0), st.integers(0, 2**31), st.integers(0, 1000))
def test_targets_sum_to_one_and_shares_follow_beta(alpha: float, chance: float, seed: int, view: int) -> None:
    config = AugmentConfig(
        mixup=Mixup(alpha=alpha, probability=min(chance, 0.9)), cutmix=CutMix(alpha=alpha, probability=chance)
    )
    augment, index = Augment(config, seed=seed, samples=100), torch.arange(30)
    rows = torch.cat([index, augment.partners(index, view)])
    assert 0 <= len(rows) - 30 <= 30
    made, target, _ = augment.mix(torch.rand(len(rows), 3, 4, 4), rows % 5, index, view, classes=5)
    assert made.shape == (30, 3, 4, 4)
    assert bool(((made >= 0) & (made <= 1)).all())
    assert bool((target >= 0).all())
    torch.testing.assert_close(target.sum(dim=1), torch.ones(30))


def test_weights_have_the_spread_of_their_beta_distribution() -> None:
    augment = Augment(AugmentConfig(mixup=Mixup(alpha=0.5)), seed=0, samples=5000)
    index = torch.arange(5000)
    labels = torch.cat([torch.zeros(5000), torch.ones(5000)]).long()
    _, target, _ = augment.mix(torch.zeros(10_000, 1, 1, 1), labels, index, 0, classes=2)
    assert float(target[:, 0].mean()) == pytest.approx(0.5, abs=0.02)
    assert float(target[:, 0].var()) == pytest.approx(1 / (4 * (2 * 0.5 + 1)), rel=0.05)


def task(config: AugmentConfig, smoothing: float = 0.0) -> Classification:
    view = Preprocessing((0.0,) * 3, (1.0,) * 3)
    both = {"student": view, "teacher": replace(view, size=4)}
    return Classification(
        class_names=CLASSES,
        preprocessing=both,
        augment=Augment(config, seed=0, samples=60),
        label_smoothing=smoothing,
    )


def test_the_supervised_loss_is_the_mixture_of_two_losses_and_both_networks_see_it() -> None:
    config = AugmentConfig(mixup=Mixup(alpha=1.0))
    made = task(config, smoothing=0.1)
    assert made.augment is not None
    loader = Loader(data(), batch_size=16, seed=0, partners=made.augment.partners)
    rows = next(iter(loader.epoch(0)))
    batch = made.training_batch(*rows, 0)
    assert batch.target is not None
    logits = torch.randn(16, 3)
    values = made.supervised(Signals(logits), batch)
    log_probabilities = logits.log_softmax(dim=1)
    smooth = 0.9 * batch.target + 0.1 / 3
    torch.testing.assert_close(values, -(smooth * log_probabilities).sum(dim=1))
    expected = torch.nn.functional.interpolate(
        batch.inputs["student"], (4, 4), mode="bilinear", antialias=True
    )
    torch.testing.assert_close(batch.inputs["teacher"], expected)  # one view, each network at its own size


def test_without_their_partners_images_cannot_be_mixed() -> None:
    with pytest.raises(ValueError, match="expected 8 images, those of partners included, got 4"):
        task(AugmentConfig(mixup=Mixup())).training_batch(*data().__getitems__([0, 1, 2, 3]), 0)
    with pytest.raises(
        ValueError, match="expected the number of training samples to mix, at least 2, got None"
    ):
        Augment(AugmentConfig(mixup=Mixup()), seed=0)


def test_a_teacher_of_smoothed_labels_smooths_mixed_ones() -> None:
    teacher = SmoothedLabels(3, correct=0.8)

    def answer(target: Tensor) -> Tensor:
        from potstill.batch import Batch

        return teacher(Batch({"student": torch.zeros(1, 1)}, target, None, torch.arange(1))).output.exp()

    one, other = answer(torch.tensor([0])), answer(torch.tensor([2]))
    mixed = mixed_labels(torch.tensor([0]), torch.tensor([2]), torch.tensor([0.75]), 3)
    torch.testing.assert_close(answer(mixed), 0.75 * one + 0.25 * other)
    torch.testing.assert_close(answer(torch.tensor([[1.0, 0.0, 0.0]])), one)


@pytest.mark.parametrize("loss", ["decoupled_kl", "gradient_attention"])
def test_losses_that_need_one_label_refuse_mixtures_at_the_recipe(tiny: Any, loss: str) -> None:
    message = rf"augment\.mixup: mixes labels, and distill\.own \({loss}\) needs one an image"
    with pytest.raises(UserError, match=message):
        load(tiny.recipe, [f"distill.own.loss={loss}", "augment.mixup=0.2"])
    assert load(tiny.recipe, [f"distill.own.loss={loss}", "augment.flip=0.5"]).augment.flip == 0.5


def test_a_run_with_every_augmentation_learns_and_is_repeatable(tiny: Any, tmp_path: Any) -> None:
    overrides = [
        "augment={vertical_flip: 0.5, rotation: 10, colour: 0.2, cutout: {size: 2, probability: 0.5}, "
        "mixup: {alpha: 0.4, probability: 0.5}, cutmix: 1}",
        "train.epochs=4",
    ]
    results = [
        run(tiny.recipe, data=tiny.root, out=tmp_path / name, overrides=overrides, echo=lambda line: None)
        for name in ("one", "two")
    ]
    scores = [[model["accuracy"] for model in result.data["models"].values()] for result in results]
    assert scores[0] == scores[1]
    assert min(scores[0]) > 0.5


def test_mixed_targets_are_the_mixture_of_what_the_teacher_says_of_two_plain_views() -> None:
    config = AugmentConfig(mixup=Mixup(alpha=1.0, probability=0.5), cutmix=CutMix(probability=0.5), crop=2)
    usual, other = task(config), task(replace(config, mix_targets=True))
    assert usual.augment is not None
    loader = Loader(data(), batch_size=16, seed=0, partners=usual.augment.partners)
    rows = next(iter(loader.epoch(1)))
    batch, expected = other.training_batch(*rows, 1), usual.training_batch(*rows, 1)
    assert torch.equal(batch.inputs["student"], expected.inputs["student"])
    assert batch.target is not None
    assert expected.target is not None
    assert torch.equal(batch.target, expected.target)
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 4 * 4, 3))
    teacher = MixedAnswers(Frozen(network)).train()
    answer = teacher(batch).output.exp()
    plain, mixed_rows = other.preprocessing["teacher"].normalise, 0
    views, index = rows[0], rows[2]
    partners = usual.augment.partners(index, 1)
    seen = usual.augment(views, torch.cat([index, partners]), 1)
    for row in range(16):  # by hand, sample by sample
        one = network(plain(seen[row : row + 1])).softmax(dim=1)[0]
        own, share = int(rows[1][row]), 1.0
        assert batch.mixture is not None
        if int(batch.mixture.partner[row]) != row:
            two = network(plain(seen[16 + mixed_rows : 17 + mixed_rows])).softmax(dim=1)[0]
            if own != int(rows[1][16 + mixed_rows]):
                share = float(batch.target[row, own])
            else:
                share = float(batch.mixture.share[row])
            one, mixed_rows = share * one + (1 - share) * two, mixed_rows + 1
        torch.testing.assert_close(answer[row], one)
    assert mixed_rows == len(partners) > 4
    assert not torch.allclose(answer, MixedAnswers(network)(expected).output.softmax(dim=1), atol=1e-3)


def test_mixed_targets_in_a_recipe(tiny: Any, tmp_path: Any) -> None:
    simple = ["distill={kl: {temperature: 2}}", "augment={mixup: 1, mix_targets: true}"]
    found = run(tiny.recipe, data=tiny.root, out=tmp_path / "one", overrides=simple, echo=lambda line: None)
    usual = [simple[0], "augment={mixup: 1}"]
    other = run(tiny.recipe, data=tiny.root, out=tmp_path / "two", overrides=usual, echo=lambda line: None)
    one, two = (load_file(tmp_path / name / "student.safetensors") for name in ("one", "two"))
    assert not torch.equal(one["conv.weight"], two["conv.weight"])
    for arm in ("teacher", "control"):
        assert found.data["models"][arm]["accuracy"] == other.data["models"][arm]["accuracy"]
    for overrides, message in (
        (["augment.mix_targets=true"], "augment.mix_targets: has a meaning beside mixup or cutmix alone"),
        (
            ["augment={cutmix: 1, mix_targets: true}"],
            r"augment.mix_targets: mixes answers alone, and distill.hint \(feature_mse\) looks inside",
        ),
        (
            [*simple, "scheme=born_again"],
            "augment.mix_targets: needs scheme: offline, in which a trained teacher answers",
        ),
    ):
        with pytest.raises(UserError, match=message):
            load(tiny.recipe, overrides)
    with pytest.raises(
        UserError, match=r"augment.mix_targets: mixes answers alone; a term compares the layer"
    ):
        MixedAnswers(torch.nn.Linear(2, 2)).tapping(["conv"])
