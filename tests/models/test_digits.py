"""The demo's networks."""

from __future__ import annotations

import pytest
import torch

from potstill.measure import parameters
from potstill.models import digits


def test_the_student_is_at_least_eight_times_smaller() -> None:
    assert parameters(digits.teacher()) >= 8 * parameters(digits.student())


@pytest.mark.parametrize("make", [digits.teacher, digits.student])
def test_logits_of_digits_for_any_number_of_classes(make: type[digits.DigitNet]) -> None:
    images = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert make()(images).shape == (3, 10)
    assert make(num_classes=4)(images).shape == (3, 4)


def test_the_second_stage_halves_the_size() -> None:
    net = digits.DigitNet(4, blocks=2)
    features = net.stage1(torch.zeros(2, 1, 8, 8))
    assert features.shape == (2, 4, 8, 8)
    assert net.stage2(features).shape == (2, 8, 4, 4)
