"""A narrow generator from its teacher's channels."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from potstill.errors import UserError
from potstill.models.generators import StyleGenerator, UNet
from potstill.models.slicing import GeneratorStudentConfig, WidthTarget, start_from, widest


def generator(width: int, **options: int) -> StyleGenerator:
    return StyleGenerator(width=width, blocks=options.get("blocks", 2), kernel=options.get("kernel", 5))


def test_of_full_width_it_is_the_teacher() -> None:
    torch.manual_seed(0)
    teacher, student = generator(4), generator(4)
    start_from(student, teacher)
    images = torch.rand(1, 3, 16, 16)
    torch.testing.assert_close(student(images), teacher(images), rtol=0, atol=0)


def test_channels_without_weight_are_the_first_to_go() -> None:
    """A teacher whose other channels are silent loses nothing."""
    torch.manual_seed(0)
    teacher, student = generator(4), generator(2)
    for module in teacher.modules():
        if isinstance(module, nn.InstanceNorm2d) and module.num_features > 3:
            with torch.no_grad():
                module.weight[::2] = 0.0
                module.bias[::2] = 0.0
    start_from(student, teacher)
    images = torch.rand(1, 3, 16, 16)
    torch.testing.assert_close(student(images), teacher(images), rtol=1e-4, atol=1e-5)


def test_smaller_kernels_keep_the_middle() -> None:
    teacher, student = generator(2), generator(2, kernel=3)
    start_from(student, teacher)
    assert torch.equal(student.enter[0].weight, teacher.enter[0].weight[..., 1:-1, 1:-1])


@pytest.mark.parametrize(
    ("student", "teacher", "match"),
    [
        (generator(5), generator(4), r"student\.arguments\.width: must be at most the teacher's, got 5 of 4"),
        (generator(2, blocks=1), generator(4), r"student\.arguments\.blocks: must be the teacher's 2"),
        (UNet(width=2, levels=2), generator(4), r"student\.model: .* got UNet"),
        (StyleGenerator(width=2, separable=True), generator(4), r"student\.model: .* full filters"),
    ],
)
def test_what_does_not_fit_is_refused(student: nn.Module, teacher: nn.Module, match: str) -> None:
    with pytest.raises(UserError, match=match):
        start_from(student, teacher)


def test_widths_and_targets_go_together() -> None:
    with pytest.raises(UserError, match=r"student\.target: even a width of 1"):
        widest(lambda width: nn.Linear(width, 9), 8, lambda one: one.weight.numel(), 5)
    with pytest.raises(UserError, match=r"student\.target: expected one of"):
        WidthTarget()
    with pytest.raises(UserError, match=r"student\.target: goes with width: auto"):
        GeneratorStudentConfig(target=WidthTarget(macs=0.5))
    with pytest.raises(UserError, match=r"student\.width: auto narrows the teacher"):
        GeneratorStudentConfig(model="x:y", width="auto", target=WidthTarget(macs=0.5))
