"""What ranks exchange: with two processes the joint result, with one nothing at all."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from torch import Tensor

from potstill import distributed

ROWS = torch.arange(12, dtype=torch.float64).reshape(6, 2) / 7 - 0.5
WEIGHT = torch.tensor([[0.3, -0.2], [0.5, 0.9]], dtype=torch.float64)


def loss_over_a_set(rows: Tensor) -> Tensor:
    """Every row against every other: no rank can compute its share alone."""
    return torch.tanh(rows @ rows.T).pow(2).sum() + (rows.sum(dim=0) ** 3).sum()


def _one_of_two(rank: int, store: str, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    found: dict[str, Any] = {"rank": distributed.rank(), "size": distributed.world_size()}
    found["main"] = distributed.is_main()
    weight = WEIGHT.clone().requires_grad_()
    mine = ROWS[rank * 3 : rank * 3 + 3] @ weight
    joined = distributed.gather(mine)
    loss = loss_over_a_set(joined)
    loss.backward()
    found["loss"], found["joined"] = loss.detach(), joined.detach()
    assert weight.grad is not None
    found["gradient"] = distributed.sum_tensor(weight.grad) / 2  # what DDP does
    found["mask"] = distributed.gather(torch.tensor([rank == 0, True]))
    found["ordered"] = distributed.gather((torch.tensor([[1, 2], [3, 4]]) + 10 * rank).T)  # not contiguous
    own = torch.tensor([1.0 + rank])
    found["sum"], found["own"] = distributed.sum_tensor(own), own
    found["floats"] = distributed.sum_floats({"b": 0.1 + rank, "a": 2.0**53 if rank else 0.0})
    found["objects"] = distributed.gather_objects({"rank": rank})
    norm = torch.nn.BatchNorm1d(2)
    norm.running_mean.fill_(float(rank + 1))  # type: ignore[union-attr]
    distributed.broadcast_buffers(norm)
    found["buffer"] = norm.running_mean
    distributed.barrier()
    torch.save(found, f"{folder}/{rank}.pt")
    distributed.stop()
    assert distributed.world_size() == 1


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> list[dict[str, Any]]:
    place = tmp_path_factory.mktemp("two")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(pytestconfig.rootpath))  # a spawned process imports this file by its name
        multiprocessing.spawn(_one_of_two, (str(place / "store"), str(place)), nprocs=2)
    return [torch.load(place / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


def test_each_knows_who_it_is(both: list[dict[str, Any]]) -> None:
    assert [found["rank"] for found in both] == [0, 1]
    assert [found["size"] for found in both] == [2, 2]
    assert [found["main"] for found in both] == [True, False]


def test_gathered_rows_give_value_and_gradient_of_the_joint_batch(both: list[dict[str, Any]]) -> None:
    weight = WEIGHT.clone().requires_grad_()
    rows = ROWS @ weight
    loss = loss_over_a_set(rows)
    loss.backward()
    for found in both:
        torch.testing.assert_close(found["joined"], rows.detach(), rtol=0, atol=1e-14)
        torch.testing.assert_close(found["loss"], loss.detach(), rtol=0, atol=1e-12)
        torch.testing.assert_close(found["gradient"], weight.grad, rtol=0, atol=1e-12)


def test_masks_and_transposed_tensors_are_gathered_in_the_order_of_the_ranks(
    both: list[dict[str, Any]],
) -> None:
    for found in both:
        assert found["mask"].tolist() == [True, True, False, True]
        assert found["ordered"].tolist() == [[1, 3], [2, 4], [11, 13], [12, 14]]


def test_sums_are_exact_and_leave_what_was_given_alone(both: list[dict[str, Any]]) -> None:
    for rank, found in enumerate(both):
        assert found["sum"].tolist() == [3.0]
        assert found["own"].tolist() == [1.0 + rank]
        assert found["floats"] == {"a": 2.0**53, "b": pytest.approx(1.2, abs=1e-15)}
        assert found["objects"] == [{"rank": 0}, {"rank": 1}]


def test_all_evaluate_with_the_statistics_of_the_main_rank(both: list[dict[str, Any]]) -> None:
    assert [found["buffer"].tolist() for found in both] == [[1.0, 1.0], [1.0, 1.0]]


def test_one_process_exchanges_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    distributed.start()
    assert not dist.is_initialized()
    assert distributed.is_main()
    tensor = torch.ones(2)
    assert distributed.gather(tensor) is tensor
    assert distributed.sum_tensor(tensor) is tensor
    assert distributed.sum_floats({"a": 1.0}) == {"a": 1.0}
    distributed.barrier()
    distributed.stop()
