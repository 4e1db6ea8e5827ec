"""Relations between samples against slow oracles, hand-worked numbers and the invariances they promise."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from potstill import losses
from potstill.losses.relations import _angles
from tests.contracts.row import maps, vectors

Rows = list[list[float]]


def dot(first: list[float], second: list[float]) -> float:
    return sum(a * b for a, b in zip(first, second, strict=True))


def unit(row: list[float]) -> list[float]:
    length = math.sqrt(dot(row, row))
    return [value / length for value in row]


def every_pair(rows: Rows, relation: Callable[[list[float], list[float]], float]) -> Rows:
    return [[relation(first, second) for second in rows] for first in rows]


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def flat(rows: Rows) -> list[float]:
    return [value for row in rows for value in row]


def smooth(difference: float) -> float:
    size = abs(difference)
    return size**2 / 2 if size < 1 else size - 0.5


def similarity_preserving(student: Rows, teacher: Rows) -> float:
    ours, theirs = ([unit(row) for row in every_pair(net, dot)] for net in (student, teacher))
    return mean([(a - b) ** 2 for a, b in zip(flat(ours), flat(theirs), strict=True)])


def rkd_distance(student: Rows, teacher: Rows) -> float:
    nets = []
    for net in (student, teacher):
        lengths = flat(every_pair(net, math.dist))
        unity = mean([length for length in lengths if length > 0])
        nets.append([length / unity for length in lengths])
    return mean([smooth(a - b) for a, b in zip(*nets, strict=True)])


def rkd_angle(student: Rows, teacher: Rows) -> float:
    def cosine(net: Rows, corner: int, first: int, second: int) -> float:
        arms = [[a - b for a, b in zip(net[end], net[corner], strict=True)] for end in (first, second)]
        if not any(arms[0]) or not any(arms[1]):
            return 0.0
        return dot(unit(arms[0]), unit(arms[1]))

    triples = itertools.product(range(len(student)), repeat=3)
    return mean([smooth(cosine(student, *triple) - cosine(teacher, *triple)) for triple in triples])


def correlation_congruence(
    student: Rows, teacher: Rows, variant: str = "kernel", gamma: float = 0.4, order: int = 2
) -> float:
    if variant == "delta":
        delta = [
            [abs(a - b) for a, b in zip(*pair, strict=True)] for pair in zip(student, teacher, strict=True)
        ]
        return mean([dot(first, second) for first, second in itertools.pairwise(delta)])

    def kernel(first: list[float], second: list[float]) -> float:
        inner = 2 * gamma * dot(unit(first), unit(second))
        return math.exp(-2 * gamma) * sum(inner**p / math.factorial(p) for p in range(order + 1))

    ours, theirs = (flat(every_pair(net, kernel)) for net in (student, teacher))
    return mean([(a - b) ** 2 for a, b in zip(ours, theirs, strict=True)])


def probabilistic_transfer(student: Rows, teacher: Rows) -> float:
    nets = []
    for net in (student, teacher):
        kernel = every_pair(net, lambda first, second: (1 + dot(unit(first), unit(second))) / 2)
        nets.append([value / sum(row) + 1e-7 for row in kernel for value in row])
    return mean([b * math.log(b / a) for a, b in zip(*nets, strict=True)])


ORACLES: dict[str, Callable[..., float]] = {
    "similarity_preserving": similarity_preserving,
    "rkd_distance": rkd_distance,
    "rkd_angle": rkd_angle,
    "correlation_congruence": correlation_congruence,
    "probabilistic_transfer": probabilistic_transfer,
}
CASES: list[tuple[str, dict[str, Any]]] = [
    ("similarity_preserving", {}),
    ("rkd_distance", {}),
    ("rkd_angle", {}),
    ("correlation_congruence", {}),
    ("correlation_congruence", {"gamma": 0.7, "order": 4}),
    ("correlation_congruence", {"variant": "delta"}),
    ("probabilistic_transfer", {}),
]


def rows(net: Tensor) -> Rows:
    found: Rows = net.flatten(1).tolist()
    return found


@pytest.mark.parametrize(("name", "options"), CASES)
def test_a_loss_equals_its_oracle(name: str, options: dict[str, Any]) -> None:
    student, teacher = (maps if name == "similarity_preserving" else vectors)(7)
    value = getattr(losses, name)(student, teacher, **options)
    assert float(value) == pytest.approx(ORACLES[name](rows(student), rows(teacher), **options), rel=1e-10)


@pytest.mark.parametrize("name", list(ORACLES))
def test_student_and_teacher_may_differ_in_width(name: str) -> None:
    student, teacher = vectors(6)
    student = student[:, :3]
    value = getattr(losses, name)(student, teacher)
    assert float(value) == pytest.approx(ORACLES[name](rows(student), rows(teacher)), rel=1e-10)


# Worked by hand from the formulas.
GOLDEN: list[tuple[str, Rows, Rows, dict[str, Any], float]] = [
    # G_s = I; G_t all 2, its rows (1, 1)/sqrt(2): each row (1 - r)^2 + r^2 = 2 - 2r, r = 1/sqrt(2); over 4
    ("similarity_preserving", [[1, 0], [0, 1]], [[1, 1], [1, 1]], {}, (4 - 2 * math.sqrt(2)) / 4),
    # distances 1, 1, 2 over 4/3: 3/4, 3/4, 3/2; those of the teacher 5, 0, 5 over 5: 1, 0, 1;
    # (1/16 + 9/16 + 4/16)/2 twice, over 9
    ("rkd_distance", [[0], [1], [2]], [[0], [5], [5]], {}, 7 / 72),
    # a right angle and two of 45 degrees, against 0 between equal samples and none at them: at the first
    # corner twice 1/2; at each other twice 1/4, and 1/2 for the arm to the equal sample, of cosine 1 and 0
    ("rkd_angle", [[0, 0], [1, 0], [0, 1]], [[0], [1], [1]], {}, 3 / 27),
    # off the diagonal cosines 0 and 1: exp(-0.8) (1.12), squared, twice, over 4
    ("correlation_congruence", [[1, 0], [0, 1]], [[1], [1]], {}, (math.exp(-0.8) * 1.12) ** 2 / 2),
    # |differences| (1, 2), (3, 0), (1, 1): 3 + 0 and 3 + 0, mean 3
    (
        "correlation_congruence",
        [[1, 2], [-3, 0], [0, 0]],
        [[0, 0], [0, 0], [1, -1]],
        {"variant": "delta"},
        3.0,
    ),
    # rows of the student (1, 1/2) / (3/2), of the teacher (1/2, 1/2); floors of 1e-7 do not show
    ("probabilistic_transfer", [[1, 0], [0, 1]], [[1], [1]], {}, math.log(9 / 8) / 4),
]


@pytest.mark.parametrize(("name", "student", "teacher", "options", "value"), GOLDEN)
def test_golden_numbers(
    name: str, student: Rows, teacher: Rows, options: dict[str, Any], value: float
) -> None:
    nets = (torch.tensor(net, dtype=torch.float64) for net in (student, teacher))
    relative = 1e-6 if name == "probabilistic_transfer" else 1e-12
    assert float(getattr(losses, name)(*nets, **options)) == pytest.approx(value, rel=relative)


def pair(seed: int, count: int = 5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (torch.randn(count, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    return student, teacher


def rotation(seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed + 1)
    return torch.linalg.qr(torch.randn(4, 4, generator=generator, dtype=torch.float64)).Q


SEEDS = st.integers(0, 10**6)


@pytest.mark.parametrize("name", ["rkd_distance", "rkd_angle"])
@settings(max_examples=25, deadline=None)
@given(seed=SEEDS, scale=st.floats(1e-3, 1e3), shift=st.floats(-100, 100))
def test_rkd_ignores_rotation_shift_and_scale(name: str, seed: int, scale: float, shift: float) -> None:
    student, teacher = pair(seed)
    moved = scale * student @ rotation(seed) + shift
    function = getattr(losses, name)
    torch.testing.assert_close(function(moved, teacher), function(student, teacher), rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(function(teacher, moved), function(teacher, student), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", [name for name in ORACLES if not name.startswith("rkd")])
@settings(max_examples=25, deadline=None)
@given(seed=SEEDS, scale=st.floats(1e-3, 1e3))
def test_similarities_ignore_rotation_of_channels_and_scale(name: str, seed: int, scale: float) -> None:
    student, teacher = pair(seed)
    function = getattr(losses, name)
    moved = scale * student @ rotation(seed)
    torch.testing.assert_close(function(moved, teacher), function(student, teacher))


@settings(max_examples=25, deadline=None)
@given(seed=SEEDS)
def test_similarity_preserving_ignores_rotation_of_a_maps_channels(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (torch.randn(4, 4, 2, 2, generator=generator, dtype=torch.float64) for _ in range(2))
    turned = torch.einsum("nchw,cd->ndhw", student, rotation(seed))
    value = losses.similarity_preserving(student, teacher)
    torch.testing.assert_close(losses.similarity_preserving(turned, teacher), value)


@pytest.mark.parametrize("name", ORACLES)
@settings(max_examples=25, deadline=None)
@given(seed=SEEDS)
def test_the_order_of_the_batch_does_not_matter(name: str, seed: int) -> None:
    student, teacher = pair(seed, 6)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(seed))
    function = getattr(losses, name)
    torch.testing.assert_close(function(student[order], teacher[order]), function(student, teacher))


def test_delta_depends_on_the_order() -> None:
    student, teacher = pair(0)
    order = torch.tensor([0, 2, 1, 3, 4])
    value = losses.correlation_congruence(student, teacher, variant="delta")
    moved = losses.correlation_congruence(student[order], teacher[order], variant="delta")
    assert float((value - moved).abs()) > 1e-3


def test_delta_takes_the_next_sample_that_counts() -> None:
    student, teacher = pair(0)
    where = torch.tensor([True, False, False, True, True])
    value = losses.correlation_congruence(student, teacher, variant="delta", where=where)
    chosen = [rows(net[where]) for net in (student, teacher)]
    assert float(value) == pytest.approx(correlation_congruence(*chosen, variant="delta"), rel=1e-12)


def test_delta_needs_equal_widths() -> None:
    with pytest.raises(ValueError, match=r"delta: .*\(4, 3\).*\(4, 5\)"):
        losses.correlation_congruence(torch.ones(4, 3), torch.ones(4, 5), variant="delta")


@pytest.mark.parametrize("name", ORACLES)
def test_what_is_no_batch_of_features_is_named(name: str) -> None:
    with pytest.raises(ValueError, match=r"\(N, \.\.\.\).*\(4,\).*\(4, 5\)"):
        getattr(losses, name)(torch.ones(4), torch.ones(4, 5))


@pytest.mark.parametrize("name", ["rkd_distance", "rkd_angle"])
@pytest.mark.parametrize("scale", [1.0, 300.0])
def test_equal_samples_far_from_zero_are_found_equal_in_float32(name: str, scale: float) -> None:
    """Rounding noise taken for a distance made such a batch's loss several times too large."""
    student, teacher = (scale * (10 + net).float().repeat(3, 1) for net in pair(0))
    student.requires_grad_()
    value = getattr(losses, name)(student, teacher)
    exact = ORACLES[name](rows(student.detach()), rows(teacher))
    assert float(value.detach()) == pytest.approx(exact, rel=1e-5)
    value.backward()
    assert student.grad is not None
    assert bool(torch.isfinite(student.grad).all())
    thirds = student.grad.reshape(3, 5, 4)  # equal samples are pulled alike
    torch.testing.assert_close(thirds[0], thirds[1], rtol=1e-4, atol=1e-4 * float(thirds.abs().max()))


@pytest.mark.parametrize(("name", "options"), CASES)
def test_nan_in_a_sample_that_counts_is_not_hidden(name: str, options: dict[str, Any]) -> None:
    student, teacher = vectors(4)
    student[1, 2] = torch.nan
    assert math.isnan(float(getattr(losses, name)(student, teacher, **options)))


@pytest.mark.parametrize("most", [1, 12, 36, 100])
def test_angles_by_any_tiles_are_the_same(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    nets = [net.requires_grad_() for net in pair(0, 6)]
    whole = losses.rkd_angle(*nets)
    expected = torch.autograd.grad(whole, nets)
    monkeypatch.setattr(_angles, "ON_CPU", most)
    value = losses.rkd_angle(*nets)
    torch.testing.assert_close(value, whole)
    torch.testing.assert_close(torch.autograd.grad(value, nets), expected)


@pytest.mark.parametrize(("name", "options"), CASES)
def test_gradients_of_both_nets_are_right_under_a_mask(name: str, options: dict[str, Any]) -> None:
    nets = [net.requires_grad_() for net in vectors(5)]
    where = torch.tensor([True, True, False, True, True])
    function = getattr(losses, name)
    torch.autograd.gradcheck(lambda *both: function(*both, where=where, **options), nets, atol=1e-6)


@pytest.mark.parametrize(("name", "options"), CASES)
def test_autocast_does_not_lower_the_precision(name: str, options: dict[str, Any]) -> None:
    student, teacher = (net.float().requires_grad_() for net in vectors(6))
    function = getattr(losses, name)
    value = function(student, teacher, **options)
    with torch.autocast("cpu", torch.bfloat16):
        lowered = function(student, teacher, **options)
        gradient = torch.autograd.grad(lowered, student)[0]
    torch.testing.assert_close(lowered, value)
    torch.testing.assert_close(gradient, torch.autograd.grad(value, student)[0])


@pytest.mark.parametrize("name", ["rkd_distance", "rkd_angle"])
def test_nothing_bigger_than_pairs_or_features_is_kept_for_the_backward_pass(name: str) -> None:
    student, teacher = (torch.randn(40, 30, requires_grad=True) for _ in range(2))
    kept: list[int] = []

    def count(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        getattr(losses, name)(student, teacher)
    assert max(kept) == 40 * 40
