"""Two phases: who gets which gradient, what is real, what the control is, what is noticed."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, multiprocessing, nn
from torch.nn.parallel import DistributedDataParallel

from potstill import distributed
from potstill.batch import Batch, Signals
from potstill.errors import UserError
from potstill.losses import image_l1
from potstill.matching.objective import Objective
from potstill.matching.recording import record
from potstill.models.discriminators import PatchDiscriminator
from potstill.models.generators import LatentGenerator, StyleGenerator
from potstill.schemes import Adversarial, Offline
from potstill.schemes.signs import PATIENCE


def to_truth(signals: Signals, batch: Batch) -> Tensor:
    assert batch.target is not None
    return image_l1(signals.output, batch.target)


def batch_of(rows: int = 2, *, truth: bool = False) -> Batch:
    images = torch.rand(rows, 3, 16, 16, generator=torch.Generator().manual_seed(2))
    return Batch({"student": images}, images.flip(1) if truth else None, None, torch.arange(rows))


def generator(width: int) -> StyleGenerator:
    return StyleGenerator(width=width, blocks=2, kernel=3)


HINTS: dict[str, Any] = {"image_l1": {"weight": 10}, "feature_mse": {"weight": 1, "layers": "auto"}}


def scheme_of(*, truth: bool = False, taught: bool = True, **options: Any) -> Adversarial:
    torch.manual_seed(0)
    student, teacher = generator(2), generator(4)
    channels = 6 if options.get("conditional") else 3
    judge = PatchDiscriminator(channels, width=4, layers=1)
    objective = Objective(HINTS if taught else {}, to_truth if truth else None)
    return Adversarial(
        student, teacher if taught else None, objective, judge, example=batch_of(truth=truth), **options
    )


def gradients(module: nn.Module) -> list[float]:
    return [0.0 if each.grad is None else float(each.grad.norm()) for each in module.parameters()]


@pytest.mark.parametrize(
    "options", [{}, {"truth": True}, {"conditional": True}, {"r1": 0.5}, {"game": "vanilla"}]
)
def test_no_gradient_of_a_phase_reaches_the_other_network(options: dict[str, Any]) -> None:
    scheme = scheme_of(**options)
    batch = batch_of(truth=options.get("truth", False))
    scheme(batch, "generator").loss.backward()
    assert all(each.grad is None for each in scheme.judge.parameters())
    assert min(gradients(scheme.student)) >= 0
    assert sum(gradients(scheme.student)) > 0
    assert all(each.requires_grad for each in scheme.judge.parameters())
    scheme.zero_grad(set_to_none=True)
    scheme(batch, "discriminator").loss.backward()
    assert all(each.grad is None for each in scheme.parts["student"].parameters())
    assert sum(gradients(scheme.judge)) > 0


def test_the_adversary_itself_reaches_the_generator() -> None:
    scheme = scheme_of()
    scheme(batch_of(), "generator").parts["adversarial"].total.backward()
    assert sum(gradients(scheme.student)) > 0


def test_discriminator_sees_the_images_of_the_generators_phase() -> None:
    scheme, batch = scheme_of(), batch_of()
    fake = scheme(batch, "generator").output.output.detach()
    with torch.no_grad():
        for parameter in scheme.student.parameters():
            parameter.add_(0.1)
    torch.testing.assert_close(scheme(batch, "discriminator").output.output, fake, rtol=0, atol=0)
    scheme.stepped(1)
    assert not torch.equal(scheme(batch, "discriminator").output.output, fake)


def test_real_images_are_the_truth_else_the_teachers() -> None:
    seen: list[Tensor] = []
    for truth in (False, True):
        scheme, batch = scheme_of(truth=truth), batch_of(truth=truth)
        scheme.judge.register_forward_pre_hook(lambda _, given: seen.append(given[0].detach()))
        scheme(batch, "discriminator")
        assert scheme.teacher is not None
        wanted = batch.target if truth else scheme.teacher(batch).output
        assert wanted is not None
        torch.testing.assert_close(seen[-1][: len(batch)], wanted)


def test_equal_generators_have_features_at_zero() -> None:
    torch.manual_seed(0)
    teacher = generator(4)
    scheme = Adversarial(
        copy.deepcopy(teacher),
        teacher,
        Objective(HINTS),
        PatchDiscriminator(width=4, layers=1),
        example=batch_of(),
    )
    parts = scheme(batch_of(), "generator").parts
    assert float(parts["feature_mse"].mean.detach()) == 0.0
    assert float(parts["image_l1"].mean.detach()) == 0.0


def test_features_are_compared_at_equal_resolutions_after_a_convolution() -> None:
    plan = scheme_of().objective.plan
    assert plan
    for pair in plan:
        assert pair.student_shape[2:] == pair.teacher_shape[2:]
        assert "1x1" in (pair.adapter or "")


def test_control_by_what_is_there() -> None:
    alone = scheme_of().control(generator(2))
    assert isinstance(alone, Offline)
    assert list(alone(batch_of()).parts) == ["image_l1"]
    paired = scheme_of(truth=True, weight=0.5).control(generator(2))
    assert isinstance(paired, Adversarial)
    step = paired(batch_of(truth=True), "generator")
    assert {name: part.weight for name, part in step.parts.items()} == {"labels": 1.0, "adversarial": 0.5}
    assert paired.teacher is None
    ours, theirs = scheme_of(truth=True).judge.state_dict(), paired.judge.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def game_from_noise(**options: Any) -> tuple[Adversarial, Batch]:
    torch.manual_seed(0)
    real = torch.rand(2, 1, 28, 28)
    batch = Batch({"student": torch.randn(2, 64)}, real, None, torch.arange(2))
    student, teacher = LatentGenerator(width=2), LatentGenerator(width=4)
    judge = PatchDiscriminator(1, width=4, layers=1)
    objective = Objective({"image_l1": {}, "feature_mse": {"weight": 1}})
    return Adversarial(student, teacher, objective, judge, example=batch, **options), batch


def test_real_images_without_an_input_are_what_is_real_and_no_truth() -> None:
    scheme, batch = game_from_noise()
    assert scheme.teacher is not None
    step = scheme(batch, "generator")
    wanted = (step.output.output - scheme.teacher(batch).output).abs().mean()
    torch.testing.assert_close(step.parts["image_l1"].mean, wanted)
    seen: list[Tensor] = []
    scheme.judge.register_forward_pre_hook(lambda _, given: seen.append(given[0].detach()))
    scheme(batch, "discriminator")
    assert batch.target is not None
    torch.testing.assert_close(seen[-1][:2], batch.target)


def test_layers_of_generators_of_noise_are_paired_by_resolution() -> None:
    scheme, _ = game_from_noise()
    assert [(pair.student, pair.teacher) for pair in scheme.objective.plan] == [("up1", "up1")]  # the middle
    objective = Objective({"attention_transfer": {}})
    layers = [record(LatentGenerator(width=width), torch.randn(2, 64)) for width in (2, 4)]
    objective.resolve(*layers)
    assert [pair.student for pair in objective.plan] == ["enter", "up1", "up2"]


def test_the_control_from_noise_is_a_game_of_its_own() -> None:
    scheme, batch = game_from_noise(weight=0.5)
    control = scheme.control(LatentGenerator(width=2))
    assert isinstance(control, Adversarial)
    assert control.teacher is None
    assert {name: part.weight for name, part in control(batch, "generator").parts.items()} == {
        "adversarial": 0.5
    }
    ours, theirs = scheme.judge.state_dict(), control.judge.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_what_goes_wrong_is_noticed_once_it_lasts() -> None:
    scheme = scheme_of()
    for _ in range(PATIENCE - 1):
        assert not list(scheme.notices({"discriminator": 0.001, "variety": 1.0}))
    assert "wins" in "".join(scheme.notices({"discriminator": 0.001, "variety": 1.0}))
    assert not list(scheme.notices({"discriminator": 0.001, "variety": 1.0}))
    for _ in range(PATIENCE - 1):
        assert not list(scheme.notices({"discriminator": 0.5, "variety": 0.01}))
    assert "collapse" in "".join(scheme.notices({"discriminator": 0.5, "variety": 0.01}))


def test_a_student_of_one_image_has_no_variety() -> None:
    scheme = scheme_of()
    with torch.no_grad():
        for parameter in scheme.student.parameters():
            parameter.zero_()
    assert float(scheme(batch_of(), "discriminator").parts["variety"].mean) == pytest.approx(0.0, abs=1e-6)
    ours = scheme_of()
    ours.student.load_state_dict(generator(2).state_dict())
    assert float(ours(batch_of(), "discriminator").parts["variety"].mean) > 0.1


def test_what_cannot_be_judged_is_refused() -> None:
    with pytest.raises(UserError, match=r"scheme\.discriminator: cannot judge"):
        Adversarial(generator(2), generator(2), Objective(HINTS), PatchDiscriminator(1), example=batch_of())
    judge, objective = PatchDiscriminator(width=2, layers=1), Objective({}, to_truth)
    with pytest.raises(UserError, match="real images"):
        Adversarial(generator(2), None, objective, judge, example=batch_of())
    with pytest.raises(ValueError, match="phases generator and discriminator"):
        scheme_of()(batch_of(), "train")


def _gradients(scheme: Adversarial, batch: Batch) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Gradients and sums of both phases of a step, names without DDP's wrapper."""
    found: dict[str, Tensor] = {}
    totals: dict[str, float] = {}
    for phase in ("generator", "discriminator"):
        scheme.zero_grad()
        step = scheme(batch, phase)
        step.loss.backward()
        totals |= {name: float(part.total.detach()) for name, part in step.parts.items()}
        for name, parameter in scheme.named_parameters():
            if parameter.grad is not None and parameter.grad.any():
                found[f"{phase}: {name.replace('.module.', '.')}"] = parameter.grad.clone()
    return found, totals


def _half(rank: int, store: str, folder: str) -> None:
    """One of two processes: half of the batch, each part through DDP."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    scheme = scheme_of(truth=True)
    for name, part in list(scheme.parts.items()):
        scheme.parts[name] = DistributedDataParallel(part)
    whole = batch_of(4, truth=True)
    assert whole.target is not None
    rows = slice(2 * rank, 2 * rank + 2)
    half = Batch({"student": whole.tensor("student")[rows]}, whole.target[rows], None, whole.index[rows])
    torch.save(_gradients(scheme, half), f"{folder}/{rank}.pt")
    distributed.stop()


def test_two_processes_equal_one_with_convolutions(tmp_path: Path, pytestconfig: pytest.Config) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(pytestconfig.rootpath))
        multiprocessing.spawn(_half, (str(tmp_path / "store"), str(tmp_path)), nprocs=2)
    expected, totals = _gradients(scheme_of(truth=True), batch_of(4, truth=True))
    both = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert any(name.startswith("discriminator: ") for name in expected)
    for gradients_of_one, _ in both:
        assert gradients_of_one.keys() == expected.keys()
        for name, gradient in expected.items():
            torch.testing.assert_close(gradients_of_one[name], gradient, rtol=1e-3, atol=1e-6, msg=name)
    for name in totals.keys() - {"variety"}:  # which is of a batch
        assert sum(each[1][name] for each in both) == pytest.approx(totals[name], rel=1e-4)
