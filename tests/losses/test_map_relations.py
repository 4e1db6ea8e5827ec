"""Losses of relations within a sample and between layers against slow oracles in plain Python floats."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from potstill import losses

Matrix = list[list[float]]


def random(*shape: int, seed: int = 7) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(shape, generator=generator, dtype=torch.float64)


def rows(sample: Tensor) -> Matrix:
    """The channels of one sample ``(C, H, W)`` as lists over positions."""
    channels: Matrix = sample.flatten(1).tolist()
    return channels


def dot(first: list[float], second: list[float]) -> float:
    return sum(a * b for a, b in zip(first, second, strict=True))


def mean_square(first: Matrix, second: Matrix) -> float:
    differences = [a - b for x, y in zip(first, second, strict=True) for a, b in zip(x, y, strict=True)]
    return sum(each * each for each in differences) / len(differences)


def flow(first: Tensor, second: Tensor) -> Matrix:
    a, b = rows(first), rows(second)
    return [[dot(x, y) / len(x) for y in b] for x in a]


def halved(maps: Tensor) -> Tensor:
    """Means of squares of two by two positions, of one sample ``(C, H, W)``."""
    channels, height, width = maps.shape
    pooled = torch.zeros(channels, height // 2, width // 2, dtype=maps.dtype)
    for c in range(channels):
        for i in range(height // 2):
            for j in range(width // 2):
                four = [float(maps[c, 2 * i + p, 2 * j + q]) for p in (0, 1) for q in (0, 1)]
                pooled[c, i, j] = sum(four) / 4
    return pooled


def correlations(channels: Matrix) -> Matrix:
    means = [sum(each) / len(each) for each in channels]
    centred = [[value - mean for value in each] for each, mean in zip(channels, means, strict=True)]
    return [[dot(x, y) / math.sqrt(dot(x, x) * dot(y, y)) for y in centred] for x in centred]


def columns(vectors: Tensor) -> Matrix:
    return [vectors[:, c].tolist() for c in range(vectors.shape[1])]


def alignment(first: Tensor, second: Tensor) -> float:
    """Linear CKA of two layers ``(N, C)``, through the similarities of every two samples."""
    grams = []
    for layer in (first, second):
        vectors = layer.tolist()
        means = [sum(each[c] for each in vectors) / len(vectors) for c in range(len(vectors[0]))]
        centred = [[x - mean for x, mean in zip(each, means, strict=True)] for each in vectors]
        grams.append([dot(x, y) for x in centred for y in centred])
    return dot(*grams) / math.sqrt(dot(grams[0], grams[0]) * dot(grams[1], grams[1]))


def selectivity(student: Tensor, teacher: Tensor) -> float:
    """The mean of the kernel over pairs, as the paper has it."""
    sides = []
    for sample in (student, teacher):
        sides.append([[v / math.sqrt(dot(x, x)) for v in x] for x in rows(sample)])

    def kernel(first: Matrix, second: Matrix) -> float:
        return sum(dot(x, y) ** 2 for x in first for y in second) / (len(first) * len(second))

    ours, theirs = sides
    return kernel(theirs, theirs) + kernel(ours, ours) - 2 * kernel(ours, theirs)


def distribution(student: Tensor, teacher: Tensor, temperature: float) -> float:
    total = 0.0
    for s, t in zip(rows(student), rows(teacher), strict=True):
        p_s, p_t = softmax(s, temperature), softmax(t, temperature)
        total += sum(b * (math.log(b) - math.log(a)) for a, b in zip(p_s, p_t, strict=True))
    return temperature**2 * total / student.shape[0]


def softmax(row: list[float], temperature: float) -> list[float]:
    powers = [math.exp((value - max(row)) / temperature) for value in row]
    return [power / sum(powers) for power in powers]


def each_sample(oracle: Callable[..., float], student: Tensor, teacher: Tensor, **options: Any) -> Tensor:
    values = [oracle(s, t, **options) for s, t in zip(student, teacher, strict=True)]
    return torch.tensor(values, dtype=torch.float64)


def assert_equal(values: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(values, expected, rtol=1e-10, atol=1e-12)


def test_fsp_equals_its_oracle() -> None:
    student = random(3, 2, 6, 6), random(3, 4, 3, 3, seed=8)
    teacher = random(3, 2, 6, 6, seed=9), random(3, 4, 3, 3, seed=10)
    expected = [
        mean_square(flow(halved(s1), s2), flow(halved(t1), t2))
        for s1, s2, t1, t2 in zip(*student, *teacher, strict=True)
    ]
    assert_equal(losses.fsp(student, teacher), torch.tensor(expected, dtype=torch.float64))


def test_gram_equals_its_oracle() -> None:
    student, teacher = random(3, 4, 5, 5), random(3, 4, 3, 3, seed=8)
    expected = each_sample(lambda s, t: mean_square(flow(s, s), flow(t, t)), student, teacher)
    assert_equal(losses.gram(student, teacher), expected)


@pytest.mark.parametrize(
    ("ours", "theirs"), [((3, 5, 5), (4, 5, 5)), ((3, 2, 2), (6, 2, 2)), ((7, 2, 3), (2, 2, 3))]
)
def test_neuron_selectivity_equals_its_oracle(ours: tuple[int, ...], theirs: tuple[int, ...]) -> None:
    student, teacher = random(3, *ours), random(3, *theirs, seed=8)
    assert_equal(losses.neuron_selectivity(student, teacher), each_sample(selectivity, student, teacher))


def test_neuron_selectivity_pools_the_bigger_map() -> None:
    student, teacher = random(3, 3, 3, 3), random(3, 5, 6, 6, seed=8)
    pooled = torch.stack([halved(each) for each in teacher])
    assert_equal(losses.neuron_selectivity(student, teacher), losses.neuron_selectivity(student, pooled))
    assert_equal(losses.neuron_selectivity(teacher, student), losses.neuron_selectivity(pooled, student))


def test_channel_correlation_equals_its_oracle() -> None:
    student, teacher = random(3, 4, 5, 5), random(3, 4, 3, 3, seed=8)
    expected = each_sample(
        lambda s, t: mean_square(correlations(rows(s)), correlations(rows(t))), student, teacher
    )
    assert_equal(losses.channel_correlation(student, teacher), expected)


def test_batch_channel_correlation_equals_its_oracle() -> None:
    student, teacher = random(7, 4), random(7, 4, seed=8)
    expected = mean_square(correlations(columns(student)), correlations(columns(teacher)))
    assert float(losses.batch_channel_correlation(student, teacher)) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("samples", [4, 9])
def test_layer_correlation_equals_its_oracle(samples: int) -> None:
    student = random(samples, 3, 4, 4), random(samples, 5, 2, seed=8), random(samples, 6, seed=9)
    teacher = random(samples, 2, seed=10), random(samples, 4, 2, 2, seed=11), random(samples, 5, seed=12)
    ours = student[0].mean((2, 3)), student[1].mean(1), student[2]
    theirs = teacher[0], teacher[1].mean((2, 3)), teacher[2]
    tables = [[[alignment(a, b) for b in net] for a in net] for net in (ours, theirs)]
    assert float(losses.layer_correlation(student, teacher)) == pytest.approx(mean_square(*tables), rel=1e-10)


@pytest.mark.parametrize("temperature", [4.0, 1.0])
def test_channel_distribution_equals_its_oracle(temperature: float) -> None:
    student, teacher = random(3, 4, 5, 5), random(3, 4, 5, 5, seed=8)
    expected = each_sample(distribution, student, teacher, temperature=temperature)
    assert_equal(losses.channel_distribution(student, teacher, temperature=temperature), expected)


def tensor(values: list[Any]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_golden_numbers() -> None:
    one, other = tensor([[[[1.0, 2.0]]]]), tensor([[[[3.0, 1.0]], [[0.0, 2.0]]]])
    # G_s = ((1*3 + 2*1)/2, (1*0 + 2*2)/2) = (5/2, 2), G_t = (0, 0) from a map of zeros: (25/4 + 4)/2
    assert float(losses.fsp((one, other), (0 * one, other))) == pytest.approx(5.125, rel=1e-12)
    # G_s = ((5, 1), (1, 2)), G_t = ((1, 0), (0, 1)): (16 + 1 + 1 + 1)/4
    root = math.sqrt(2)
    teacher = tensor([[[[root, 0.0]], [[0.0, root]]]])
    assert float(losses.gram(other, teacher)) == pytest.approx(4.75, rel=1e-12)
    # x = (3, 4)/5 against (1, 0) and (0, 1): 1 + (1 + 0 + 0 + 1)/4 - 2 (9/25 + 16/25)/2
    student = tensor([[[[3.0, 4.0]]]])
    assert float(losses.neuron_selectivity(student, teacher)) == pytest.approx(0.5, rel=1e-12)
    # channels that rise together, and two of which one falls: 1 and -1 off the diagonal, 2 * 4 / 4
    rising, falling = tensor([[[[0.0, 1.0]], [[0.0, 5.0]]]]), tensor([[[[0.0, 1.0]], [[5.0, 0.0]]]])
    assert float(losses.channel_correlation(rising, falling)) == pytest.approx(2.0, rel=1e-12)
    # the same over a batch of three: (1, 0, -1) with itself and with (1, -2, 1), to which it is orthogonal
    first, second = tensor([1.0, 0.0, -1.0]), tensor([1.0, -2.0, 1.0])
    alike, apart = torch.stack([first, first], 1), torch.stack([first, second], 1)
    assert float(losses.batch_channel_correlation(alike, apart)) == pytest.approx(0.5, rel=1e-12)
    # layers of one channel: CKA is the squared correlation, 1 and 0 off the diagonal, 2 * 1 / 4
    nets = [(first.unsqueeze(1), each.unsqueeze(1)) for each in (first, second)]
    assert float(losses.layer_correlation(*nets)) == pytest.approx(0.5, rel=1e-12)
    # p_t = (3/4, 1/4), p_s = (1/2, 1/2) at T = 4, times 16; the second channel is equal: half of it
    uniform, skewed = (
        tensor([[[[0.0, 0.0]], [[1.0, 2.0]]]]),
        tensor([[[[4 * math.log(3), 0.0]], [[1.0, 2.0]]]]),
    )
    expected = 16 * (0.75 * math.log(1.5) + 0.25 * math.log(0.5)) / 2
    assert float(losses.channel_distribution(uniform, skewed)) == pytest.approx(expected, rel=1e-12)


SEEDS = st.integers(0, 1000)
SCALES = st.floats(1e-3, 1e3)


@settings(max_examples=25, deadline=None)
@given(SEEDS)
def test_inner_products_do_not_depend_on_the_order_of_positions(seed: int) -> None:
    student, teacher = random(2, 3, 4, 4, seed=seed), random(2, 3, 4, 4, seed=seed + 1)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(seed))
    moved = student.flatten(2)[:, :, order].reshape(student.shape)
    assert_equal(losses.gram(moved, teacher), losses.gram(student, teacher))
    assert_equal(losses.channel_correlation(moved, teacher), losses.channel_correlation(student, teacher))
    assert_equal(losses.fsp((moved, moved), (teacher, teacher)), losses.gram(student, teacher))


@settings(max_examples=25, deadline=None)
@given(SEEDS, SCALES, st.floats(-10, 10))
def test_correlations_ignore_positive_scale_and_shift(seed: int, scale: float, shift: float) -> None:
    student, teacher = random(4, 3, 4, 4, seed=seed), random(4, 3, 4, 4, seed=seed + 1)
    moved = student * scale + shift * scale
    torch.testing.assert_close(
        losses.channel_correlation(moved, teacher), losses.channel_correlation(student, teacher)
    )
    torch.testing.assert_close(
        losses.batch_channel_correlation(moved.mean((2, 3)), teacher.mean((2, 3))),
        losses.batch_channel_correlation(student.mean((2, 3)), teacher.mean((2, 3))),
    )


@settings(max_examples=25, deadline=None)
@given(SEEDS)
def test_sets_do_not_depend_on_the_order_of_samples(seed: int) -> None:
    student, teacher = random(5, 4, seed=seed), random(5, 4, seed=seed + 1)
    order = torch.randperm(5, generator=torch.Generator().manual_seed(seed))
    assert_equal(
        losses.batch_channel_correlation(student[order], teacher[order]),
        losses.batch_channel_correlation(student, teacher),
    )
    nets = [(each, each[:, :2].square()) for each in (student, teacher)]
    moved = [tuple(layer[order] for layer in net) for net in nets]
    assert_equal(losses.layer_correlation(*moved), losses.layer_correlation(*nets))


@settings(max_examples=25, deadline=None)
@given(SEEDS, SCALES, st.floats(-10, 10))
def test_layer_correlation_ignores_rotation_scale_and_shift(seed: int, scale: float, shift: float) -> None:
    student = random(6, 4, seed=seed), random(6, 3, seed=seed + 1)
    teacher = random(6, 2, seed=seed + 2), random(6, 5, seed=seed + 3)
    rotation = torch.linalg.qr(random(4, 4, seed=seed + 4)).Q
    moved = (scale * (student[0] @ rotation) + shift * scale, student[1])
    torch.testing.assert_close(
        losses.layer_correlation(moved, teacher), losses.layer_correlation(student, teacher)
    )


@settings(max_examples=25, deadline=None)
@given(SEEDS, SCALES)
def test_neuron_selectivity_ignores_the_scale_sign_and_order_of_channels(seed: int, scale: float) -> None:
    student, teacher = random(2, 3, 4, 4, seed=seed), random(2, 5, 4, 4, seed=seed + 1)
    moved = (student * tensor([scale, -1.0, 1.0]).reshape(3, 1, 1)).flip(1)
    assert_equal(losses.neuron_selectivity(moved, teacher), losses.neuron_selectivity(student, teacher))


@settings(max_examples=25, deadline=None)
@given(SEEDS, st.floats(-100, 100))
def test_channel_distribution_ignores_a_shift_of_a_channel(seed: int, shift: float) -> None:
    student, teacher = random(2, 3, 4, 4, seed=seed), random(2, 3, 4, 4, seed=seed + 1)
    moved = student + tensor([shift, 0.0, 1.0]).reshape(3, 1, 1)
    assert_equal(losses.channel_distribution(moved, teacher), losses.channel_distribution(student, teacher))


@pytest.mark.parametrize("level", [0.0, 0.1, -7.3e3])
def test_a_constant_channel_goes_with_none_and_gets_no_gradient(level: float) -> None:
    student, teacher = random(5, 3, 3, 3).float(), random(5, 3, 3, 3, seed=8).float()
    student[:, 1] = level
    student.requires_grad_()
    losses.channel_correlation(student, teacher).sum().backward()
    assert student.grad is not None
    assert float(student.grad[:, 1].abs().max()) == 0.0
    assert float(student.grad.abs().max()) > 0.0
    pooled = student.detach().mean((2, 3))
    pooled[:, 1] = level
    pooled.requires_grad_()
    losses.batch_channel_correlation(pooled, teacher.mean((2, 3))).backward()
    assert pooled.grad is not None
    assert float(pooled.grad[:, 1].abs().max()) == 0.0


@pytest.mark.parametrize("level", [0.0, 0.1, -7.3e3])
@pytest.mark.parametrize("samples", [3, 8])
def test_a_constant_layer_is_like_none_and_gets_no_gradient(level: float, samples: int) -> None:
    constant = torch.full((samples, 4), level, requires_grad=True)
    student = constant, random(samples, 3).float()
    teacher = random(samples, 2, seed=8).float(), random(samples, 5, seed=9).float()
    value = losses.layer_correlation(student, teacher)
    # K_s = ((0, 0), (0, 1)), K_t = ((1, k), (k, 1))
    expected = (1 + 2 * alignment(*teacher) ** 2) / 4
    assert float(value.detach()) == pytest.approx(expected, rel=1e-5)
    value.backward()
    assert constant.grad is not None
    assert float(constant.grad.abs().max()) == 0.0


@pytest.mark.parametrize("scale", [1e-25, 1e25])
def test_losses_of_directions_bear_squares_beyond_float32(scale: float) -> None:
    student, teacher = random(4, 3, 4, 4), random(4, 3, 4, 4, seed=8)
    nets = [(each, each.flatten(2)[:, :2]) for each in (student, teacher)]
    small = [tuple((scale * layer).float() for layer in net) for net in nets]
    assert float(losses.layer_correlation(*small)) == pytest.approx(
        float(losses.layer_correlation(*nets)), rel=1e-4
    )
    for loss in (losses.channel_correlation, losses.neuron_selectivity):
        values = loss((student * scale).float(), (teacher * scale).float())
        torch.testing.assert_close(values.double(), loss(student, teacher), rtol=1e-4, atol=1e-6)


def test_one_sample_has_no_relation_over_a_set() -> None:
    student, teacher = random(1, 4), random(1, 4, seed=8)
    assert float(losses.batch_channel_correlation(student, teacher)) == 0.0
    assert float(losses.layer_correlation((student, student), (teacher, teacher))) == 0.0


@pytest.mark.parametrize(
    ("loss", "student", "teacher", "message"),
    [
        ("gram", (2, 3, 4, 4), (2, 5, 4, 4), r"adapter.*\(2, 3, 4, 4\) and teacher \(2, 5, 4, 4\)"),
        (
            "channel_correlation",
            (2, 3, 4, 4),
            (2, 5, 4, 4),
            r"adapter.*\(2, 3, 4, 4\) and teacher \(2, 5, 4, 4\)",
        ),
        ("channel_distribution", (2, 3, 4, 4), (2, 3, 2, 2), r"\(2, 3, 4, 4\) and teacher \(2, 3, 2, 2\)"),
        ("batch_channel_correlation", (2, 3), (2, 5), r"vectors \(N, C\).*\(2, 3\) and teacher \(2, 5\)"),
        ("neuron_selectivity", (2, 3), (2, 3, 4, 4), r"maps .*\(2, 3\) and teacher \(2, 3, 4, 4\)"),
    ],
)
def test_shapes_that_do_not_fit_are_named(
    loss: str, student: tuple[int, ...], teacher: tuple[int, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        getattr(losses, loss)(torch.ones(student), torch.ones(teacher))


def test_layers_that_do_not_fit_are_named() -> None:
    layer = torch.ones(2, 3)
    with pytest.raises(ValueError, match=r"same number of layers.* got 2 of the student and 3"):
        losses.layer_correlation((layer, layer), (layer, layer, layer))
    with pytest.raises(ValueError, match="two or more, got 1"):
        losses.layer_correlation((layer,), (layer,))
    maps = torch.ones(2, 3, 4, 4)
    with pytest.raises(ValueError, match=r"student \(2, 3, 4, 4\) and teacher \(2, 5, 4, 4\)"):
        losses.fsp((maps, maps), (maps, torch.ones(2, 5, 4, 4)))
