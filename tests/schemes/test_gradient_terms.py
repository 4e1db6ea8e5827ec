"""Terms that differentiate: the student twice, the teacher once and without a trace."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from potstill import distributed
from potstill.batch import Batch, Signals
from potstill.errors import UserError
from potstill.losses import gradient_attention
from potstill.matching.objective import Objective
from potstill.schemes import Offline
from potstill.teachers import Ensemble, Frozen


def supervised(signals: Signals, batch: Batch) -> Tensor:
    assert batch.target is not None
    return cross_entropy(signals.output, batch.target, reduction="none")


def network(width: int, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.Tanh()),
        nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(width, width, 3, padding=1), nn.ReLU()),
        nn.Flatten(),
        nn.Linear(width * 16, 3),
    )


def batch_of(rows: int = 6) -> Batch:
    torch.manual_seed(rows)
    images = torch.randn(rows, 1, 8, 8)
    return Batch({"student": images, "teacher": 2 * images}, torch.arange(rows) % 3, None, torch.arange(rows))


def scheme_of(terms: dict[str, Any], teacher: nn.Module | None = None) -> Offline:
    return Offline(
        network(2), teacher or network(4, seed=1), Objective(terms, supervised), example=batch_of(2)
    )


def test_auto_takes_the_input_and_gives_the_gradient_of_a_hand_written_loop() -> None:
    scheme, batch = scheme_of({"gradient_attention": {}}), batch_of()
    assert scheme.objective.plan[0].describe() == (
        "  :input (1, 8, 8) <- :input (1, 8, 8); no adapter; the input of both networks"
    )
    step = scheme(batch)
    step.loss.backward()
    student, teacher = network(2), network(4, seed=1).eval()
    pairs = [
        (each(image), image)
        for each, image in (
            (student, batch.inputs["student"].clone().requires_grad_()),
            (teacher, batch.inputs["teacher"].clone().requires_grad_()),
        )
    ]
    assert batch.target is not None
    value = gradient_attention(*pairs, batch.target).mean()
    (value + cross_entropy(pairs[0][0], batch.target)).backward()
    torch.testing.assert_close(step.parts["gradient_attention"].mean, value)
    for ours, theirs in zip(scheme.student.parameters(), student.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


def test_the_teacher_stays_the_same_to_the_bit_and_the_batch_gets_no_gradient() -> None:
    teacher = network(4, seed=1)
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    scheme, batch = scheme_of({"gradient_attention": {}, "kl": {}, "feature_mse": {}}, teacher), batch_of()
    optimizer = torch.optim.SGD(scheme.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        scheme(batch).loss.backward()
        optimizer.step()
    assert all(torch.equal(before[name], tensor) for name, tensor in teacher.state_dict().items())
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert not any(tensor.requires_grad for tensor in batch.inputs.values())
    assert all(tensor.grad is None for tensor in batch.inputs.values())


def test_other_terms_are_what_they_are_without_it() -> None:
    batch = batch_of()
    alone, beside = scheme_of({"kl": {}}), scheme_of({"kl": {}, "gradient_attention": {"weight": 1e-30}})
    for scheme in (alone, beside):
        scheme(batch).loss.backward()
    for one, other in zip(alone.student.parameters(), beside.student.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)
    assert alone.teacher is not None
    assert not alone.teacher(batch).output.requires_grad


def test_listed_layers_of_both_and_maps_of_different_width() -> None:
    scheme = scheme_of({"gradient_attention": {"layers": ["0", "1"], "variant": "map"}})
    scheme(batch_of()).loss.backward()
    assert all(parameter.grad is not None for parameter in scheme.student.parameters())
    with pytest.raises(UserError, match=r"^distill.gradient_attention: expected gradients of one shape"):
        scheme_of({"gradient_attention": {"layers": ["0"]}})(batch_of())


def test_it_is_learnt() -> None:
    scheme, batch = scheme_of({"gradient_attention": {}, "labels": {"weight": 0}}), batch_of()
    optimizer = torch.optim.Adam(scheme.parameters(), lr=0.02)
    values = []
    for _ in range(60):
        optimizer.zero_grad()
        step = scheme(batch)
        step.loss.backward()
        optimizer.step()
        values.append(float(step.loss.detach()))
    assert values[-1] < 0.9 * values[0]


def test_an_ensemble_is_differentiated_as_a_whole() -> None:
    members = [network(4, seed=seed) for seed in (1, 2)]
    scheme, batch = scheme_of({"gradient_attention": {"of": "logit"}}, Ensemble(members)), batch_of()
    assert scheme.teacher is not None
    answer = scheme.teacher(batch)
    image = batch.inputs["teacher"].clone().requires_grad_()
    mean = torch.stack([member.eval()(image).softmax(1) for member in members]).mean(0).log()
    (expected,) = torch.autograd.grad(mean[:, 0].sum(), image)
    (found,) = torch.autograd.grad(answer.output[:, 0].sum(), answer.taps[":input"])
    torch.testing.assert_close(found, expected)
    scheme(batch).loss.backward()


def test_no_graph_is_kept_where_no_gradient_is_computed() -> None:
    teacher = Frozen(network(4), [":input"])
    assert teacher(batch_of()).output.requires_grad
    with torch.no_grad():
        assert not teacher(batch_of()).output.requires_grad
    assert not Frozen(network(4), ["0"])(batch_of()).output.requires_grad


def test_attention_in_the_network_is_differentiated_twice() -> None:
    def encoder() -> nn.Module:
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(8, 2, 8, batch_first=True, dropout=0.0)
        return nn.Sequential(nn.Unflatten(1, (4, 8)), layer, nn.Flatten(), nn.Linear(32, 3))

    inputs = torch.randn(6, 32)
    batch = Batch({"student": inputs}, torch.arange(6) % 3, None, torch.arange(6))
    terms = Objective({"gradient_attention": {}}, supervised)
    scheme = Offline(encoder(), encoder(), terms, example=batch)
    scheme(batch).loss.backward()
    grads = [parameter.grad for parameter in scheme.student.parameters()]
    assert all(grad is not None and bool(grad.isfinite().all()) for grad in grads)


def test_token_ids_have_no_gradient_but_their_embeddings_do() -> None:
    def classifier() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Embedding(10, 4), nn.Tanh(), nn.Flatten(), nn.Linear(20, 3))

    ids = torch.randint(0, 10, (6, 5))
    batch = Batch({"student": ids}, torch.arange(6) % 3, None, torch.arange(6))

    def step(layers: Any) -> Any:
        terms = Objective({"gradient_attention": {"layers": layers}}, supervised)
        return Offline(classifier(), classifier(), terms, example=batch)(batch)

    with pytest.raises(UserError, match=r"holds integers \(torch.int64\).*embedding layer"):
        step("auto")
    listed = step(["0"])
    listed.loss.backward()
    torch.testing.assert_close(listed.parts["gradient_attention"].mean.detach(), torch.tensor(0.0))


def test_a_compiled_student_says_which_switch() -> None:
    scheme = scheme_of({"gradient_attention": {}})
    scheme.parts["student"].compile(backend="aot_eager")
    try:
        with pytest.raises(UserError, match=r"compiled student .* twice; .*train.compile: false"):
            scheme(batch_of())
    finally:
        torch._dynamo.reset()


def test_masked_samples_do_not_count() -> None:
    batch, scheme = batch_of(), scheme_of({"gradient_attention": {}})
    where = torch.tensor([True, True, False, True, False, True])
    masked = Batch(batch.inputs, batch.target, where, batch.index)
    scheme.eval()
    part = scheme(masked).parts["gradient_attention"]
    assert part.count == 4
    inputs = {role: tensor[where] for role, tensor in batch.inputs.items()}
    assert batch.target is not None
    subset = Batch(inputs, batch.target[where], None, batch.index[where])
    torch.testing.assert_close(part.total, scheme(subset).parts["gradient_attention"].total)


def _half(rank: int, store: str, folder: str) -> None:
    """One of two processes: half of the batch, through DDP."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    scheme, batch, mine = scheme_of(ALONE), batch_of(), slice(3 * rank, 3 * rank + 3)
    scheme.eval()
    scheme.parts["student"] = DistributedDataParallel(scheme.parts["student"])
    assert batch.target is not None
    inputs = {role: tensor[mine] for role, tensor in batch.inputs.items()}
    scheme(Batch(inputs, batch.target[mine], None, batch.index[mine])).loss.backward()
    torch.save([parameter.grad for parameter in scheme.student.parameters()], f"{folder}/{rank}.pt")
    distributed.stop()


ALONE: dict[str, Any] = {"gradient_attention": {}, "labels": {"weight": 0}}


def test_two_processes_give_the_gradient_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[2])
    multiprocessing.spawn(_half, (str(tmp_path / "store"), str(tmp_path)), nprocs=2)
    scheme = scheme_of(ALONE)
    scheme.eval()
    scheme(batch_of()).loss.backward()
    expected = [parameter.grad for parameter in scheme.student.parameters()]
    for rank in (0, 1):
        halves = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        torch.testing.assert_close(halves, expected, rtol=1e-4, atol=1e-7)
