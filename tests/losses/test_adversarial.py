"""The three games and the penalty, against their formulas and golden numbers."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from potstill.batch import Batch, Signals
from potstill.errors import UserError
from potstill.losses import image_l1, perceptual
from potstill.losses.adversarial import Game, against, deceiving, gradient_penalty
from potstill.matching.objective import Objective

REAL, FAKE = [[1.5, -0.5], [0.2, 3.0]], [[-2.0, 0.5], [1.0, 0.0]]


def soft(value: float) -> float:
    return math.log1p(math.exp(value))


FORMULAS = {
    "hinge": (lambda r: max(0.0, 1 - r), lambda f: max(0.0, 1 + f), lambda f: -f),
    "least_squares": (lambda r: (r - 1) ** 2, lambda f: f**2, lambda f: (f - 1) ** 2),
    "vanilla": (lambda r: soft(-r), soft, lambda f: soft(-f)),
}


@pytest.mark.parametrize("game", ["hinge", "least_squares", "vanilla"])
def test_games_equal_their_formulas(game: Game) -> None:
    on_real, on_fake, of_generator = FORMULAS[game]
    real, fake = torch.tensor(REAL), torch.tensor(FAKE)
    for row in range(2):
        mean = sum(on_real(r) + on_fake(f) for r, f in zip(REAL[row], FAKE[row], strict=True)) / 2
        assert float(against(real, fake, game)[row]) == pytest.approx(mean / 2, rel=1e-6)
        wanted = sum(of_generator(f) for f in FAKE[row]) / 2
        assert float(deceiving(fake, game)[row]) == pytest.approx(wanted, rel=1e-6)


def test_penalty_is_half_the_squared_gradient_and_trains() -> None:
    weight = torch.tensor([1.0, -2.0], requires_grad=True)
    images = torch.tensor([[3.0, 1.0], [0.5, 2.0]], requires_grad=True)
    judged = (images.square() * weight).sum(dim=1, keepdim=True)
    penalty = gradient_penalty(judged, images)
    assert penalty.tolist() == [0.5 * (6**2 + 4**2), 0.5 * (1**2 + 8**2)]
    penalty.sum().backward()
    assert weight.grad is not None
    assert weight.grad.tolist() == [4 * (9 + 0.25) * 1.0, 4 * (1 + 4) * -2.0]


def test_image_l1_equals_its_oracle() -> None:
    student, teacher = torch.randn(2, 2, 3, 2, 2).double()
    pairs = [
        zip(ours.flatten(), theirs.flatten(), strict=True)
        for ours, theirs in zip(student, teacher, strict=True)
    ]
    oracle = [sum(abs(float(a) - float(b)) for a, b in pair) / 12 for pair in pairs]
    assert image_l1(student, teacher).tolist() == pytest.approx(oracle, rel=1e-12)


def test_perceptual_golden() -> None:
    maps = torch.tensor([[3.0, 4.0], [0.0, 2.0]]).reshape(2, 2, 1, 1)
    other = torch.tensor([[4.0, 3.0], [5.0, 0.0]]).reshape(2, 2, 1, 1)
    assert perceptual(maps, other).tolist() == pytest.approx([0.08, 2.0])
    assert perceptual(maps, 7 * maps).tolist() == pytest.approx([0.0, 0.0], abs=1e-6)
    with pytest.raises(ValueError, match="expected maps of one shape"):
        perceptual(maps, maps[:1])


def test_a_term_of_seen_maps_moves_the_student_alone_and_needs_eyes() -> None:
    eye = nn.Conv2d(3, 4, 3).requires_grad_(False)
    objective = Objective({"perceptual": {"weight": 2}}, eyes=lambda images: [images, eye(images)])
    student, teacher = torch.rand(2, 3, 8, 8, requires_grad=True), torch.rand(2, 3, 8, 8, requires_grad=True)
    batch = Batch({"student": student}, None, torch.tensor([True, False]), torch.arange(2))
    part = objective.shares(Signals(student), Signals(teacher), batch)["perceptual"]
    wanted = [perceptual(one(student), one(teacher))[0] for one in (nn.Identity(), eye)]
    torch.testing.assert_close(part.total, torch.stack(wanted).mean())
    assert (part.count, part.weight) == (1.0, 2.0)
    part.total.backward()
    assert student.grad is not None
    assert student.grad[0].abs().sum() > 0
    assert student.grad[1].abs().sum() == 0
    assert teacher.grad is None
    with pytest.raises(UserError, match=r"distill\.perceptual: needs a network to see images with"):
        Objective({"perceptual": {}})


def test_image_l1_golden() -> None:
    student, teacher = (
        torch.tensor([[[[0.0, 1.0]]], [[[0.5, 0.5]]]]),
        torch.tensor([[[[1.0, 1.0]]], [[[0.0, 0.75]]]]),
    )
    assert image_l1(student, teacher).tolist() == [0.5, 0.375]
    with pytest.raises(ValueError, match="one shape"):
        image_l1(student, teacher[..., :1])
