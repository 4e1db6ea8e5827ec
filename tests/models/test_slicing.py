"""A narrow generator from its teacher's channels."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from potstill import measure
from potstill.errors import UserError
from potstill.models.generators import StyleGenerator, UNet
from potstill.models.load import ModelConfig
from potstill.models.slicing import (
    GeneratorStudentConfig,
    WidthTarget,
    fitting,
    narrow_config,
    start_from,
    widest,
)


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
    with pytest.raises(UserError, match=r"student\.target: expected one of .* got none"):
        WidthTarget()
    with pytest.raises(UserError, match=r"student\.target: expected one of .* got macs and latency_ms"):
        WidthTarget(macs=0.5, latency_ms=3)
    with pytest.raises(UserError, match=r"student\.target: goes with width: auto"):
        GeneratorStudentConfig(target=WidthTarget(macs=0.5))
    with pytest.raises(UserError, match=r"student\.width: narrows the teacher"):
        GeneratorStudentConfig(model="x:y", width="auto", target=WidthTarget(macs=0.5))
    teacher = ModelConfig(model="x:y", arguments={"width": 8, "blocks": 2})
    assert narrow_config(GeneratorStudentConfig(width=3), teacher).arguments == {"width": 3, "blocks": 2}


def test_the_largest_width_that_fits() -> None:
    for least in range(9):
        assert widest(lambda width, least=least: width <= least, 8) == least  # type: ignore[misc]


@pytest.mark.parametrize(("target", "wanted"), [({"macs": 0.4}, 2), ({"parameters": 12_000}, 3)])
def test_counted_targets(target: dict[str, float], wanted: int) -> None:
    teacher = generator(4)
    width, note = fitting(WidthTarget(**target), generator, teacher, (3, 16, 16))
    assert width == wanted
    assert f"width: auto is {wanted}" in note
    with pytest.raises(
        UserError, match=r"student\.target\.parameters: even a width of 1 is above it: .* got 3"
    ):
        fitting(WidthTarget(parameters=3), generator, teacher, (3, 16, 16))


def test_timed_targets(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stopwatch that says a millisecond for each channel, and for the teacher as well."""

    def told(models: dict[str, tuple[nn.Module, object]]) -> dict[str, measure.Latency]:
        widths = {name: next(model.parameters()).shape[0] for name, (model, _) in models.items()}
        return {name: measure.Latency(width, 0.9 * width, 1.2 * width, 30) for name, width in widths.items()}

    monkeypatch.setattr(measure, "latency", told)
    teacher = generator(8)
    width, note = fitting(WidthTarget(latency_ms=5.5), generator, teacher, (3, 16, 16))
    assert width == 5
    assert "5 ms (10th to 90th percentile 4.5 to 6, 30 passes), 0.625 of the teacher's 8 ms" in note
    assert "a width of 6 has 6 ms" in note
    assert fitting(WidthTarget(latency=0.26), generator, teacher, (3, 16, 16))[0] == 2
    wanted = r"student\.target\.latency_ms: even a width of 1 is above it: 1 ms \(.*\), .* got 0\.5"
    with pytest.raises(UserError, match=wanted):
        fitting(WidthTarget(latency_ms=0.5), generator, teacher, (3, 16, 16))
