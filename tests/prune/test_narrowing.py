"""A narrow generator from its teacher's channels."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from potstill import measure
from potstill.errors import UserError
from potstill.models.generators import LatentGenerator, StyleGenerator, UNet
from potstill.models.load import ModelConfig
from potstill.prune.narrowing import (
    GeneratorStudentConfig,
    Start,
    WidthTarget,
    fitting,
    narrow_config,
    widest,
)

IMAGES = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
NOISE = torch.randn(2, 64, generator=torch.Generator().manual_seed(0))


def generator(width: int, **options: Any) -> StyleGenerator:
    return StyleGenerator(width=width, **{"blocks": 2, "kernel": 5, **options})


def unet(width: int, **options: Any) -> UNet:
    return UNet(width=width, levels=3, **options)


def start(teacher: nn.Module, example: Tensor = IMAGES, **options: Any) -> Start:
    def answers(model: nn.Module) -> Iterator[Tensor]:
        yield model(example)

    return Start.of(teacher, example, answers, **options)


@pytest.mark.parametrize(
    ("make", "example"),
    [
        (generator, IMAGES),
        (lambda width: generator(width, separable=True), IMAGES),
        (unet, IMAGES),
        (lambda width: LatentGenerator(width=width), NOISE),
    ],
    ids=["style", "separable", "unet", "latent"],
)
@pytest.mark.parametrize("kind", ["activation_weight", "activation", "magnitude"])
def test_any_generator_starts_from_its_teachers_channels(make: Any, example: Tensor, kind: Any) -> None:
    torch.manual_seed(0)
    teacher, student, same = make(4), make(3), make(4)
    found = start(teacher, example, kind=kind)
    found.give(student)
    theirs = teacher.state_dict()
    for name, weight in student.state_dict().items():
        assert torch.isin(weight, theirs[name]).all(), name
    found.give(same)  # of full width it is the teacher
    torch.testing.assert_close(same(example), teacher(example), rtol=0, atol=0)


@pytest.mark.parametrize("make", [generator, unet])
def test_channels_that_nothing_reads_are_the_first_to_go(make: Any) -> None:
    """A teacher whose other channels are not read loses nothing: the student is the same function."""
    torch.manual_seed(0)
    teacher, student = make(4), make(2)
    structure = start(teacher).structure
    with torch.no_grad():
        for group in structure.groups:
            for piece in group.readers:
                weight = teacher.get_submodule(piece.module).weight
                weight.index_fill_(piece.dim, piece.positions(range(0, group.units, 2)), 0.0)  # type: ignore[operator]
    start(teacher).give(student)
    torch.testing.assert_close(student(IMAGES), teacher(IMAGES), rtol=1e-4, atol=1e-5)


def test_the_values_of_a_layer_that_become_one_channel_go_together() -> None:
    """Where maps are unfolded from a vector, a channel is many values of the layer before it."""
    teacher, student = LatentGenerator(width=2, side=8), LatentGenerator(width=1, side=8)
    found = start(teacher, NOISE)
    group = found.structure.group("enter.0")
    assert group.units == 8
    assert sorted(group.writers, key=lambda piece: piece.path)[1].index.shape == (8, 4)
    found.give(student)
    kept = found.scores["enter.0"].argsort()[-4:].sort().values
    wide = teacher.enter[0].weight.reshape(8, 4, 64)
    torch.testing.assert_close(student.enter[0].weight.reshape(4, 4, 64), wide[kept], rtol=0, atol=0)


def test_smaller_kernels_keep_the_middle() -> None:
    teacher, student = generator(2), generator(2, kernel=3)
    start(teacher).give(student)
    assert torch.equal(student.enter[0].weight, teacher.enter[0].weight[..., 1:-1, 1:-1])


@pytest.mark.parametrize(
    ("student", "teacher", "match"),
    [
        (generator(5), generator(4), r"student\.arguments: \S+: must be at most the teacher's \d+ wide, got"),
        (generator(2, blocks=1), generator(4), r"student\.arguments: .* no blocks\.1\."),
        (generator(2, blocks=3), generator(4), r"student\.arguments: .* has: blocks\.2\."),
        (unet(2), generator(4), r"student\.arguments: make other parts than the teacher has"),
        (generator(2, separable=True), generator(4), r"student\.arguments: make other parts"),
        (generator(2, kernel=7), generator(4), r"enter\.0\.weight: has .* 7, 7\), what is left .* 5, 5\)"),
        (unet(2, inputs=1), unet(4), r"student\.arguments: enter\.weight: has \(2, 1, 4, 4\)"),
    ],
)
def test_what_does_not_fit_is_refused(student: nn.Module, teacher: nn.Module, match: str) -> None:
    found = start(teacher)
    with pytest.raises(UserError, match=match):
        found.give(student)


def test_a_teacher_without_channels_is_refused() -> None:
    with pytest.raises(UserError, match=r"student\.model: the teacher cannot be made narrow: nothing can be"):
        start(nn.Conv2d(3, 3, 1))


def test_widths_and_targets_go_together() -> None:
    with pytest.raises(UserError, match=r"student\.target: expected one of .* got none"):
        WidthTarget()
    with pytest.raises(UserError, match=r"student\.target: expected one of .* got macs and latency_ms"):
        WidthTarget(macs=0.5, latency_ms=3)
    with pytest.raises(UserError, match=r"student\.target: goes with width: auto"):
        GeneratorStudentConfig(target=WidthTarget(macs=0.5))
    with pytest.raises(UserError, match=r"student\.width: narrows the teacher"):
        GeneratorStudentConfig(model="x:y", width="auto", target=WidthTarget(macs=0.5))
    with pytest.raises(UserError, match=r"student\.calibration: chooses among .* got model: x:y"):
        GeneratorStudentConfig(model="x:y", calibration=3)
    teacher = ModelConfig(model="x:y", arguments={"width": 8, "blocks": 2})
    assert narrow_config(GeneratorStudentConfig(width=3), teacher).arguments == {"width": 3, "blocks": 2}


def test_the_largest_width_that_fits() -> None:
    for least in range(20):
        assert widest(lambda width, least=least: width <= least) == least  # type: ignore[misc]
        assert widest(lambda width, least=least: width <= least, 8) == min(least, 8)  # type: ignore[misc]


@pytest.mark.parametrize(("target", "wanted"), [({"macs": 0.4}, 2), ({"parameters": 12_000}, 3)])
def test_counted_targets(target: dict[str, float], wanted: int) -> None:
    teacher = generator(4)
    width, note = fitting(WidthTarget(**target), generator, teacher, (3, 16, 16))
    assert width == wanted
    assert f"width: auto is {wanted}" in note
    assert "of the teacher's; a width of" in note


def test_targets_that_cannot_be_met_are_refused() -> None:
    teacher, shape = generator(4), (3, 16, 16)
    for target, match in (
        ({"parameters": 3}, r"student\.target\.parameters: even a width of 1 is above it: .* got 3"),
        ({"parameters": 10**9}, r"student\.target\.parameters: must be below the model's own"),
        ({"tokens_per_second": 9}, r"student\.target\.tokens_per_second: has a meaning for texts alone"),
    ):
        with pytest.raises(UserError, match=match):
            fitting(WidthTarget(**target), generator, teacher, shape)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"student\.width: changes nothing in StyleGenerator"):
        fitting(WidthTarget(macs=0.5), lambda _: generator(2), teacher, shape)


def test_timed_targets(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stopwatch that says a millisecond for each channel, and for the teacher as well."""

    def told(models: dict[str, tuple[nn.Module, object]], runs: int) -> dict[str, measure.Latency]:
        widths = {name: next(model.parameters()).shape[0] for name, (model, _) in models.items()}
        return {
            name: measure.Latency(width, 0.9 * width, 1.2 * width, runs) for name, width in widths.items()
        }

    monkeypatch.setattr(measure, "latency", told)
    teacher = generator(8)
    width, note = fitting(WidthTarget(latency_ms=5.5), generator, teacher, (3, 16, 16))
    assert width == 5
    assert "5 ms, 0.625 of the teacher's; a width of 6 has 6 ms" in note
    assert fitting(WidthTarget(latency=0.26), generator, teacher, (3, 16, 16))[0] == 2
    wanted = r"student\.target\.latency_ms: even a width of 1 is above it: 1 ms, .* got 0\.5"
    with pytest.raises(UserError, match=wanted):
        fitting(WidthTarget(latency_ms=0.5), generator, teacher, (3, 16, 16))
