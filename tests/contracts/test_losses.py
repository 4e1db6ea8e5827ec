"""The contract that every loss keeps. A new loss is one row in its family's ``rows_*.py``, one oracle and
one golden number in ``tests/losses``.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from torch import Tensor

from potstill import distributed, losses
from potstill.losses import spec_of
from potstill.losses.reduce import masked_mean
from tests.contracts.row import Pair, Row, logits

# Each family of losses has a file of rows beside this one.
FILES = sorted(path.stem for path in Path(__file__).parent.glob("rows_*.py"))
ROWS: dict[str, Row] = {
    name: row
    for file in FILES
    for name, row in importlib.import_module(f"tests.contracts.{file}").ROWS.items()
}


def function_of(name: str) -> Callable[..., Tensor]:
    """The loss a row is about: the first word of its name."""
    function: Callable[..., Tensor] = getattr(losses, name.split()[0])
    return function


def call(
    name: str,
    student: Tensor,
    teacher: Tensor,
    where: Tensor | None = None,
    function: Callable[..., Tensor] | None = None,
) -> Tensor:
    function, row = function or function_of(name), ROWS[name]
    if row.call is not None:
        return row.call(function, student, teacher, where, row.options)
    return function(student, teacher, where=where, **row.options)


def over_set(name: str) -> bool:
    return spec_of(function_of(name)).over_set


def mean_of(name: str, values: Tensor, where: Tensor | None = None) -> Tensor:
    """The value of a batch: a loss over a set gives it, others are averaged."""
    return values if over_set(name) else masked_mean(values, where)


def test_every_loss_has_a_row() -> None:
    assert {name.split()[0] for name in ROWS} == set(losses.__all__)


@pytest.mark.parametrize("name", losses.__all__)
def test_options_are_keywords_with_types_and_a_declaration(name: str) -> None:
    parameters = list(inspect.signature(getattr(losses, name)).parameters.values())
    spec = spec_of(getattr(losses, name))
    tensors = ["student", "teacher", *["target"] * spec.target]
    assert [parameter.name for parameter in parameters[: len(tensors)]] == tensors
    assert all(parameter.kind is parameter.KEYWORD_ONLY for parameter in parameters[len(tensors) :])
    assert all(parameter.annotation is not parameter.empty for parameter in parameters)
    assert "where" in {parameter.name for parameter in parameters}
    assert "reduction" not in {parameter.name for parameter in parameters}
    assert spec.weight > 0
    assert spec.reason if not (spec.zero_at_equality and spec.non_negative) else True


@pytest.mark.parametrize("name", losses.__all__)
def test_the_docstring_says_formula_and_source(name: str) -> None:
    text = inspect.getdoc(getattr(losses, name)) or ""
    for section in ("Formula:", "Args:", "Returns:", "Raises:", "Reference:", "Example:", "https://"):
        assert section in text


@pytest.mark.parametrize("name", ROWS)
def test_one_value_per_prediction_never_negative_and_zero_at_equality(name: str) -> None:
    student, teacher = ROWS[name].example(6)
    spec = spec_of(function_of(name))
    values = call(name, student, teacher)
    assert values.shape == (() if over_set(name) else (6,))
    if spec.non_negative:
        assert bool((values >= -1e-12).all())
    equal = call(name, teacher, teacher)
    if spec.zero_at_equality:
        torch.testing.assert_close(equal, torch.zeros_like(equal), atol=1e-12, rtol=0)
    else:
        assert bool((equal > 0).all())
    assert bool((values > 0).any())


@pytest.mark.parametrize("name", ROWS)
def test_gradients_are_right_in_float64(name: str) -> None:
    student, teacher = ROWS[name].example(3)
    student.requires_grad_()
    assert torch.autograd.gradcheck(lambda tensor: call(name, tensor, teacher), (student,), atol=1e-6)


@pytest.mark.parametrize("name", ROWS)
def test_the_loss_neither_detaches_nor_changes_its_inputs(name: str) -> None:
    student, teacher = (tensor.requires_grad_() for tensor in ROWS[name].example(4))
    before = student.detach().clone(), teacher.detach().clone()
    call(name, student, teacher).sum().backward()
    assert student.grad is not None
    if ROWS[name].teacher_gradient:
        assert teacher.grad is not None
        assert float(teacher.grad.abs().sum()) > 0
    assert torch.equal(before[0], student)
    assert torch.equal(before[1], teacher)


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(name: str, dtype: torch.dtype) -> None:
    student, teacher = (tensor.to(dtype) for tensor in ROWS[name].example(6))
    values = call(name, student, teacher)
    assert values.dtype == torch.float32
    exact = call(name, student.double(), teacher.double())
    torch.testing.assert_close(values.double(), exact, rtol=1e-4, atol=1e-5)


EXTREMES: dict[str, Callable[[Pair], Pair]] = {
    "margin 200": lambda pair: (pair[0].sign() * 100, pair[1].sign() * 100),
    "all equal": lambda pair: (torch.ones_like(pair[0]), torch.ones_like(pair[1])),
    "zeros": lambda pair: (torch.zeros_like(pair[0]), torch.zeros_like(pair[1])),
    "zero student": lambda pair: (torch.zeros_like(pair[0]), pair[1]),
    "dead channel": lambda pair: (_dead(pair[0]), _dead(pair[1])),
    "activations of 300": lambda pair: (
        pair[0] / pair[0].abs().max() * 300,
        pair[1] * 300 / pair[1].abs().max(),
    ),
    "one sample": lambda pair: (pair[0][:1], pair[1][:1]),
}


def _dead(tensor: Tensor) -> Tensor:
    copy = tensor.clone()
    copy[:, 0] = 0
    return copy


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("extreme", EXTREMES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_value_and_gradient_stay_finite(name: str, extreme: str, dtype: torch.dtype) -> None:
    student, teacher = (tensor.to(dtype) for tensor in EXTREMES[extreme](ROWS[name].example(6)))
    student.requires_grad_()
    values = call(name, student, teacher)
    assert bool(torch.isfinite(values).all())
    values.sum().backward()
    assert student.grad is not None
    assert bool(torch.isfinite(student.grad).all())


@pytest.mark.parametrize("name", [name for name in ROWS if ROWS[name].example is logits])
def test_huge_bf16_logits_stay_finite(name: str) -> None:
    student, teacher = ((tensor * 1e4).to(torch.bfloat16) for tensor in logits())
    assert bool(torch.isfinite(call(name, student, teacher)).all())


@pytest.mark.parametrize("name", ROWS)
def test_a_mask_is_a_subset(name: str) -> None:
    student, teacher = ROWS[name].example(6)
    where = torch.tensor([True, False, True, True, False, True])
    values = call(name, student, teacher, where)
    subset = call(name, student[where], teacher[where])
    if not over_set(name):
        torch.testing.assert_close(values[where], subset)
        assert bool((values[~where] == 0).all())
    torch.testing.assert_close(mean_of(name, values, where), subset.mean())


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("side", [0, 1])
def test_nan_behind_the_mask_reaches_neither_value_nor_gradient(name: str, side: int) -> None:
    pair = ROWS[name].example(4)
    where = torch.tensor([True, True, False, True])
    clean = call(name, *pair, where)
    pair[side][2] = torch.nan
    student = pair[0].requires_grad_()
    values = call(name, student, pair[1], where)
    assert torch.equal(values, clean)
    values.sum().backward()
    assert student.grad is not None
    assert bool(torch.isfinite(student.grad).all())
    assert bool((student.grad[2] == 0).all())


@pytest.mark.parametrize("name", ROWS)
def test_a_mask_of_another_shape_is_named(name: str) -> None:
    student, teacher = ROWS[name].example(4)
    with pytest.raises(ValueError, match=r"where: .*\(3,\)"):
        call(name, student, teacher, torch.ones(3, dtype=torch.bool))


@pytest.mark.parametrize("name", ROWS)
def test_all_masked_gives_zero_and_a_zero_gradient(name: str) -> None:
    student, teacher = ROWS[name].example(4)
    student.requires_grad_()
    where = torch.zeros(4, dtype=torch.bool)
    mean = mean_of(name, call(name, student, teacher, where), where)
    mean.backward()
    assert float(mean.detach()) == 0.0
    assert student.grad is not None
    assert float(student.grad.abs().sum()) == 0.0


@pytest.mark.parametrize("name", ROWS)
def test_shapes_that_do_not_fit_are_named(name: str) -> None:
    student, teacher = ROWS[name].example(4)
    with pytest.raises(ValueError, match=r"\(3,.*\(4,"):
        call(name, student[:3], teacher)


@pytest.mark.parametrize("name", [name for name in ROWS if ROWS[name].compiles])
def test_compiled_equals_eager(name: str) -> None:
    student, teacher = (tensor.float() for tensor in ROWS[name].example(6))
    student.requires_grad_()
    where = torch.tensor([True, False, True, True, False, True])
    compiled = torch.compile(function_of(name), backend="aot_eager", fullgraph=True)
    try:
        values = call(name, student, teacher, where, compiled)
    finally:
        torch._dynamo.reset()
    expected = call(name, student, teacher, where)
    torch.testing.assert_close(values, expected)
    gradients = [torch.autograd.grad(each.sum(), student)[0] for each in (values, expected)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("name", [name for name in ROWS if ROWS[name].inductor])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_inductor_equals_eager(name: str) -> None:
    student, teacher = (tensor.float() for tensor in ROWS[name].example(6))
    try:
        compiled = torch.compile(function_of(name), fullgraph=True)
        values = call(name, student, teacher, function=compiled)
    finally:
        torch._dynamo.reset()
    torch.testing.assert_close(values, call(name, student, teacher), rtol=1e-5, atol=1e-6)


def _half(rank: int, store: str, folder: str) -> None:
    """One of two processes: half of the batch of every row, with its gradient, into a file."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    found = {}
    for name in ROWS:
        student, teacher = ROWS[name].example(6)
        mine = slice(3 * rank, 3 * rank + 3)
        student = student[mine].clone().requires_grad_()
        if over_set(name):  # every process computes the joint batch's value; each has half a say in it
            loss = call(name, distributed.gather(student), distributed.gather(teacher[mine])) / 2
        else:  # one global mean: the local sum over the global count, as the loop divides
            loss = call(name, student, teacher[mine]).sum() / 6
        loss.backward()
        found[name] = (distributed.sum_tensor(loss.detach()), student.grad)
    torch.save(found, f"{folder}/{rank}.pt")
    distributed.stop()


def test_two_processes_equal_one_in_value_and_gradient(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A spawned process inherits the path and imports this module by its name, tests.contracts.test_losses.
    monkeypatch.syspath_prepend(Path(__file__).parents[2])
    multiprocessing.spawn(_half, (str(tmp_path / "store"), str(tmp_path)), nprocs=2)
    halves = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    for name in ROWS:
        student, teacher = ROWS[name].example(6)
        student.requires_grad_()
        joint = call(name, student, teacher).mean()
        joint.backward()
        for half in halves:
            torch.testing.assert_close(half[name][0], joint.detach(), rtol=1e-12, atol=1e-14)
        both = torch.cat([half[name][1] for half in halves])
        torch.testing.assert_close(both, student.grad, rtol=1e-12, atol=1e-14)
