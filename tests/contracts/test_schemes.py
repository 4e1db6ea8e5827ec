"""What every scheme must hold, run over each of them: one row a scheme and objective."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from potstill import schemes
from potstill.batch import Batch, Signals
from potstill.matching.objective import Objective
from potstill.models.exits import WithExits
from potstill.schemes import (
    Adversarial,
    BornAgain,
    DeepSupervision,
    MeanTeacher,
    Mutual,
    Offline,
    OnPolicy,
    SmoothedLabels,
)
from potstill.teachers import Ensemble, Frozen

CLASSES = 3


def supervised(signals: Signals, batch: Batch) -> Tensor:
    assert batch.target is not None
    return cross_entropy(signals.output, batch.target, reduction="none")


def network(width: int, *, norm: bool = True) -> nn.Sequential:
    return nn.Sequential(
        nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width) if norm else nn.Identity(), nn.Tanh()
        ),
        nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(width, width, 3, padding=1), nn.Tanh()),
        nn.Flatten(),
        nn.Linear(width * 16, CLASSES),
    )


def batch_of(rows: int, *, masked: bool = False) -> Batch:
    """Images whose class is the strongest of three patches; with uneven masks where asked."""
    generator = torch.Generator().manual_seed(7)
    images = torch.randn(rows, 1, 8, 8, generator=generator)
    patches = [images[:, 0, :4, :4], images[:, 0, 4:, :4], images[:, 0, :4, 4:]]
    target = torch.stack([patch.mean(dim=(1, 2)) for patch in patches], dim=1).argmax(dim=1)
    where = torch.arange(rows) % 5 != 1 if masked else None
    if where is not None:
        where[: rows // 4] = False
    return Batch({"student": images, "teacher": images + 0.1}, target, where, torch.arange(rows))


def offline(terms: dict[str, Any], teachers: int = 1, *, norm: bool = True) -> Offline:
    torch.manual_seed(0)
    student, *networks = network(2, norm=norm), *(network(4, norm=norm) for _ in range(teachers))
    teacher = Frozen(networks[0]) if teachers == 1 else Ensemble(networks)
    return Offline(student, teacher, Objective(terms, supervised), example=batch_of(2))


def born_again(terms: dict[str, Any], *, norm: bool = True, **options: Any) -> BornAgain:
    torch.manual_seed(0)
    students, teacher = [network(2, norm=norm), network(3, norm=norm)], network(4, norm=norm)
    given = None if options.pop("untaught", False) else teacher
    return BornAgain(students, given, Objective(terms, supervised), example=batch_of(2), **options)


def mutual(terms: dict[str, Any], *, norm: bool = True, **options: Any) -> Mutual:
    torch.manual_seed(0)
    peers = [network(width, norm=norm) for width in (2, 3, 2)]
    return Mutual(peers, Objective(terms, supervised), example=batch_of(2), **options)


def mean_teacher(terms: dict[str, Any], *, norm: bool = True) -> MeanTeacher:
    torch.manual_seed(0)
    return MeanTeacher(network(2, norm=norm), Objective(terms, supervised), example=batch_of(2))


def smoothed_labels(terms: dict[str, Any], *, norm: bool = True) -> Offline:
    torch.manual_seed(0)
    options: dict[str, Any] = {"example": batch_of(2)}
    return Offline(network(2, norm=norm), SmoothedLabels(CLASSES), Objective(terms, supervised), **options)


def deep_supervision(terms: dict[str, Any], *, norm: bool = True, **options: Any) -> DeepSupervision:
    torch.manual_seed(0)
    student = WithExits(network(2, norm=norm), ["0"], batch_of(2).input("student"))
    if not norm:
        for module in student.exits.modules():
            if isinstance(module, nn.Sequential) and isinstance(module[-2], nn.BatchNorm2d):
                module[-2] = nn.Identity()
    return DeepSupervision(student, Objective(terms, supervised), **options)


def on_policy(terms: dict[str, Any], *, norm: bool = True, **options: Any) -> OnPolicy:
    """The student's own samples are the batch's, darker; the labels come along, and must not be learnt."""

    def darker(network: nn.Module, batch: Batch, seed: list[int]) -> Batch:
        del network, seed
        inputs = {role: 0.5 * tensor for role, tensor in batch.inputs.items()}
        return Batch(inputs, batch.target, batch.where, batch.index)

    return OnPolicy(offline(terms, norm=norm), darker, **options)


def adversarial(terms: dict[str, Any], *, norm: bool = True, **options: Any) -> Adversarial:
    """What is judged are three logits; the teacher's are the real ones."""
    torch.manual_seed(0)
    student, teacher, judge = network(2, norm=norm), network(4, norm=norm), nn.Linear(CLASSES, 1)
    return Adversarial(student, teacher, Objective(terms, supervised), judge, example=batch_of(2), **options)


Scheme = Any
LESSONS: dict[str, Any] = {"labels": {"weight": 1}, "kl": {}}
EXITS: dict[str, Any] = {
    "labels": {"weight": 0.7},
    "kl": {"weight": 0.3 / 9, "temperature": 3},
    "feature_mse": {"weight": 0.004},
}
HINTS: dict[str, Any] = {"kl": {"temperature": 2}, "feature_mse": {"weight": 1}, "attention_transfer": {}}

SCHEMES: dict[str, Callable[..., Scheme]] = {
    "offline logits": lambda **options: offline({"kl": {}}, **options),
    "offline features": lambda **options: offline(
        {"feature_mse": {"weight": 1}, "attention_transfer": {}}, **options
    ),
    "offline all": lambda **options: offline(
        {"kl": {"temperature": 2}, "feature_mse": {"weight": 1}, "attention_transfer": {"weight": 10}},
        **options,
    ),
    "offline learnt": lambda **options: offline(
        {"factor_transfer": {"weight": 20}, "variational_information": {}}, **options
    ),
    "offline ensemble": lambda **options: offline({"kl": {}, "feature_cosine": {}}, teachers=2, **options),
    "born again": lambda **options: born_again(LESSONS, **options),
    "born again untaught": lambda **options: born_again(LESSONS, untaught=True, **options),
    "born again permuted": lambda **options: born_again(LESSONS, knowledge="permuted", **options),
    "born again weighted": lambda **options: born_again(LESSONS, knowledge="weighted", **options),
    "born again hints": lambda **options: born_again(HINTS, **options),
    "mutual": lambda **options: mutual({"kl": {"temperature": 1}}, **options),
    "mutual sum": lambda **options: mutual({"kl": {}}, over_peers="sum", **options),
    "mutual hints": lambda **options: mutual(HINTS, **options),
    "deep supervision": lambda **options: deep_supervision(EXITS, **options),
    "deep supervision ensemble": lambda **options: deep_supervision(EXITS, taught_by="ensemble", **options),
    "deep supervision frozen": lambda **options: deep_supervision(EXITS, train_backbone=False, **options),
    "on policy": lambda **options: on_policy({"kl": {}, "feature_mse": {"weight": 1}}, share=1.0, **options),
    "on policy never": lambda **options: on_policy({"kl": {}}, share=0.0, **options),
    "adversarial": lambda **options: adversarial({"image_l1": {"weight": 1}}, **options),
    "adversarial hints": lambda **options: adversarial(HINTS, game="vanilla", r1=1.0, **options),
    "mean teacher": lambda **options: mean_teacher(LESSONS, **options),
    "smoothed labels": lambda **options: smoothed_labels({"kl": {"temperature": 20}}, **options),
}
TAUGHT = {name: make for name, make in SCHEMES.items() if name.startswith(("offline", "adversarial"))}

rows = pytest.mark.parametrize("make", SCHEMES.values(), ids=list(SCHEMES))
taught_rows = pytest.mark.parametrize("make", TAUGHT.values(), ids=list(TAUGHT))


def phases(scheme: Scheme) -> list[tuple[str, str]]:
    """Every stage with each of its phases."""
    return [(stage.name, phase) for stage in scheme.stages for phase in stage.phases]


def trained_parameters(scheme: Scheme) -> list[nn.Parameter]:
    found = {}
    for stage, phase in phases(scheme):
        for part in scheme.trainable(stage, phase).values():
            found |= {id(parameter): parameter for parameter in part.parameters()}
    return list(found.values())


def train(scheme: Scheme, batch: Batch, steps: int) -> list[list[float]]:
    """Losses by stage and phase."""
    found = []
    for stage in scheme.stages:
        scheme.enter(stage.name)
        scheme.train()
        for phase in stage.phases:
            values: list[float] = []
            parts = scheme.trainable(stage.name, phase).values()
            parameters = [parameter for part in parts for parameter in part.parameters()]
            optimizer = torch.optim.SGD(parameters, lr=0.05, momentum=0.9)
            for step in range(steps):
                loss = scheme(batch, phase).loss
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                scheme.stepped(step + 1)
                values.append(float(loss.detach()))
            found.append(values)
    return found


def hooks_of(model: nn.Module) -> list[Any]:
    modules = model.modules()
    return [
        hook
        for module in modules
        for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    ]


def test_every_scheme_has_a_row() -> None:
    public = set(schemes.__all__) - {"SmoothedLabels", "Stage", "StudentPart"}
    assert {type(make()).__name__ for make in SCHEMES.values()} == public


@rows
def test_loss_falls_and_every_part_with_it(make: Callable[..., Scheme]) -> None:
    scheme, batch = make(), batch_of(32)
    before = _parts(scheme, batch)
    values = train(scheme, batch, 25)
    after = _parts(scheme, batch)
    slow = getattr(scheme, "train_backbone", True) is False or isinstance(scheme, Adversarial)
    least = 1.0 if slow else 0.9  # a discriminator judges a student that has learnt already
    assert all(phase[-1] < least * phase[0] for phase in values)
    if isinstance(scheme, Offline):  # elsewhere the teacher moves, and with it what is to be matched
        assert all(after[name] < before[name] for name in before)


def _parts(scheme: Scheme, batch: Batch) -> dict[str, float]:
    steps = [scheme(batch, phase) for _, phase in phases(scheme)]
    return {name: float(part.mean.detach()) for step in steps for name, part in step.parts.items()}


@taught_rows
def test_teacher_is_bit_for_bit_as_it_was(make: Callable[..., Scheme]) -> None:
    scheme = make()
    teacher = scheme.teacher
    assert isinstance(teacher, nn.Module)
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    assert any("running_mean" in name for name in before)
    train(scheme, batch_of(16), 3)
    assert all(torch.equal(before[name], tensor) for name, tensor in teacher.state_dict().items())
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert not any(module.training for module in teacher.modules())


@taught_rows
def test_teacher_is_no_part_of_state_or_training(make: Callable[..., Scheme]) -> None:
    scheme = make()
    teacher = scheme.teacher
    assert isinstance(teacher, nn.Module)
    theirs = {id(parameter) for parameter in teacher.parameters()}
    trained = {id(parameter) for parameter in trained_parameters(scheme)}
    assert trained == {id(parameter) for parameter in scheme.parameters()}
    assert not trained & theirs
    fresh = make()
    fresh.load_state_dict(scheme.state_dict())


@rows
def test_copy_lives_on_its_own(make: Callable[..., Scheme]) -> None:
    scheme, batch = make(), batch_of(16)
    train(scheme, batch, 1)
    other = copy.deepcopy(scheme)
    last = scheme.stages[-1].phases[-1]
    expected = scheme(batch, last).loss.detach()
    torch.testing.assert_close(other(batch, last).loss.detach(), expected, rtol=0, atol=0)
    stores = {id(hook.args[0]) for hook in hooks_of(scheme)}
    assert not stores & {id(hook.args[0]) for hook in hooks_of(other)}
    assert len(hooks_of(scheme)) == len(hooks_of(other))
    train(other, batch, 2)
    scheme.train()
    torch.testing.assert_close(scheme(batch, last).loss.detach(), expected, rtol=0, atol=0)
    assert other.student is not scheme.student
    stage, phase = scheme.stages[-1].name, scheme.stages[-1].phases[0]
    parts = list(other.trainable(stage, phase).values())
    assert other.student in [*parts, *(part.tapped.model for part in parts)]


@rows
def test_the_stages_take_one_run_or_whole_runs(make: Callable[..., Scheme]) -> None:
    scheme = make()
    total = sum(stage.share for stage in scheme.stages)
    assert total == pytest.approx(round(total))
    assert total >= 1
    for stage in scheme.stages:
        assert all(scheme.trainable(stage.name, phase) for phase in stage.phases)


@rows
@pytest.mark.parametrize("masked", [False, True])
def test_accumulated_pieces_equal_the_whole(make: Callable[..., Scheme], masked: bool) -> None:
    """The loop's rule: sums over the counts of the whole global batch, whatever the pieces."""
    batch = batch_of(20, masked=masked)
    for _, phase in phases(make()):
        whole, pieces = (make(norm=False).double() for _ in range(2))
        if getattr(whole, "knowledge", "") == "weighted":
            continue  # a sample's weight is its share of its own batch, as in the paper
        counts = whole.counts(batch, phase)
        total = gradient_of(whole, [as_double(batch)], counts, phase)
        halves = [as_double(part_of(batch, piece)) for piece in (slice(0, 7), slice(7, 20))]
        split = gradient_of(pieces, halves, counts, phase)
        torch.testing.assert_close(split, total, rtol=1e-10, atol=1e-12)
        value = whole(as_double(batch), phase).loss.detach()
        torch.testing.assert_close(total[0], value, rtol=1e-10, atol=1e-12)


@rows
def test_control_starts_from_the_given_student(make: Callable[..., Scheme]) -> None:
    scheme = make()
    control = scheme.control(copy.deepcopy(scheme.student).requires_grad_(True))
    values = train(control, batch_of(32), 25)[0]
    assert values[-1] < 0.9 * values[0]
    assert list(control(batch_of(4)).parts) == ["labels"]


def as_double(batch: Batch) -> Batch:
    inputs = {role: tensor.double() for role, tensor in batch.inputs.items()}
    return Batch(inputs, batch.target, batch.where, batch.index, batch.view)


def part_of(batch: Batch, rows: slice) -> Batch:
    where = None if batch.where is None else batch.where[rows]
    inputs = {role: tensor[rows] for role, tensor in batch.inputs.items()}
    assert batch.target is not None
    return Batch(inputs, batch.target[rows], where, batch.index[rows], batch.view)


def gradient_of(
    scheme: Scheme, batches: list[Batch], counts: dict[str, float], phase: str, scale: float = 1.0
) -> list[Tensor]:
    """The loss, then the gradient of each parameter, accumulated over ``batches``."""
    value = torch.zeros((), dtype=torch.float64)
    for batch in batches:
        loss = scheme(batch, phase).loss_over(counts) * scale
        loss.backward()
        value += loss.detach()
    return [value, *(parameter.grad for parameter in scheme.parameters() if parameter.grad is not None)]


def set_loss(student: Tensor, teacher: Tensor, *, where: Tensor | None = None) -> Tensor:
    """A loss over a batch: distances between samples, only right when the batches of all ranks are joined."""
    if where is not None:
        student, teacher = student[where], teacher[where]
    return (student @ student.T - teacher @ teacher.T).square().mean()


def declare_set_loss() -> None:
    from potstill import losses
    from potstill.losses._declare import matches

    losses.relation = matches("logits", weight=0.5, over_set=True)(set_loss)  # type: ignore[attr-defined]
    if "relation" not in losses.__all__:
        losses.__all__.append("relation")


def rank_rows() -> dict[str, Callable[..., Scheme]]:
    declare_set_loss()
    return {**SCHEMES, "offline set": lambda **options: offline({"relation": {}, "kl": {}}, **options)}


def run_rank(rank: int, folder: Path) -> None:
    """One of two processes: DDP around each part, its half of the batch, the counts of the whole."""
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel

    from potstill import distributed

    dist.init_process_group("gloo", init_method=f"file://{folder / 'meet'}", rank=rank, world_size=2)
    results = {}
    for name, make in rank_rows().items():
        for masked in (False, True):
            for stage, phase in phases(make()):
                scheme = make(norm=False).double()
                for part in scheme.trainable(stage, phase):
                    scheme.parts[part] = DistributedDataParallel(scheme.parts[part])
                half = as_double(part_of(batch_of(20, masked=masked), slice(10 * rank, 10 * rank + 10)))
                counts = distributed.sum_floats(scheme.counts(half, phase))
                results[f"{name} {masked} {phase}"] = gradient_of(scheme, [half], counts, phase, scale=2.0)
    torch.save(results, folder / f"rank{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_equal_one_in_value_and_gradient(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from potstill import losses

    monkeypatch.setattr(losses, "__all__", list(losses.__all__))
    monkeypatch.setattr(losses, "relation", None, raising=False)
    command = [sys.executable, __file__, str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    workers = [subprocess.Popen([*command, str(rank)], env=environment) for rank in range(2)]
    assert [worker.wait(timeout=120) for worker in workers] == [0, 0]
    first, second = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in range(2))
    for name, make in rank_rows().items():
        for masked in (False, True):
            for _, phase in phases(make()):
                scheme, batch = make(norm=False).double(), as_double(batch_of(20, masked=masked))
                expected = gradient_of(scheme, [batch], scheme.counts(batch, phase), phase)
                values = [ranks[f"{name} {masked} {phase}"] for ranks in (first, second)]
                value = (values[0][0] + values[1][0]) / 2  # each rank's loss is scaled for DDP's average
                torch.testing.assert_close(value, expected[0], rtol=1e-10, atol=1e-12)
                for gradients in (values[0][1:], values[1][1:]):
                    torch.testing.assert_close(gradients, expected[1:], rtol=1e-10, atol=1e-12)


if __name__ == "__main__":
    torch.set_num_threads(1)
    run_rank(int(sys.argv[2]), Path(sys.argv[1]))
    # gloo's threads may outlive the interpreter and abort the process while it unloads
    os._exit(0)
