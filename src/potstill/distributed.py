"""Ranks and what they exchange; with one process every function here is the identity."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = [
    "barrier",
    "broadcast_buffers",
    "gather",
    "gather_objects",
    "is_main",
    "rank",
    "start",
    "stop",
    "sum_floats",
    "sum_tensor",
    "world_size",
]


def start() -> None:
    """Join the process group that ``torchrun`` describes in the environment; do nothing without one."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or dist.is_initialized():
        return
    on_cuda = torch.cuda.is_available()
    if on_cuda:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group("nccl" if on_cuda else "gloo")


def stop() -> None:
    """Leave the process group, if there is one."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    """Number of this process, from 0.

    >>> rank()
    0
    """
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def world_size() -> int:
    """Number of processes.

    >>> world_size()
    1
    """
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this process writes and speaks for all."""
    return rank() == 0


def barrier() -> None:
    """Wait for every process."""
    if world_size() > 1:
        dist.barrier()


class _Gather(torch.autograd.Function):
    """All ranks' rows joined; each rank's gradient is the sum over ranks of what they want of its rows."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        ctx.rows = tensor.shape[0]
        pieces = [torch.empty_like(tensor) for _ in range(world_size())]
        dist.all_gather(pieces, tensor.contiguous())
        return torch.cat(pieces)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].contiguous().clone()
        dist.all_reduce(total)
        own: Tensor = total[rank() * ctx.rows : (rank() + 1) * ctx.rows]
        return own


def gather(tensor: Tensor) -> Tensor:
    """The rows of all ranks, in the order of the ranks, differentiable.

    If every rank computes the same loss of the joint batch and gradients are averaged over ranks (as
    ``DistributedDataParallel`` does), the parameters get the gradient of one process with that batch.

    Args:
        tensor: ``(n, ...)``, the same shape on every rank.

    Returns:
        ``(world size * n, ...)``.
    """
    if world_size() == 1:
        return tensor
    joined: Tensor = _Gather.apply(tensor)
    return joined


def gather_objects(value: Any) -> list[Any]:
    """``value`` of every rank, in the order of the ranks; for small things, they are pickled.

    >>> gather_objects("mine")
    ['mine']
    """
    values = [value] * world_size()
    if world_size() > 1:
        dist.all_gather_object(values, value)
    return values


def sum_tensor(tensor: Tensor) -> Tensor:
    """The sum over ranks, not differentiable; ``tensor`` itself is left alone."""
    if world_size() == 1:
        return tensor
    on_device = tensor.detach().clone()
    if dist.get_backend() == "nccl":
        on_device = on_device.cuda()
    dist.all_reduce(on_device)
    return on_device.to(tensor.device)


def sum_floats(values: Mapping[str, float]) -> dict[str, float]:
    """Each value summed over ranks, in float64; all ranks must give the same keys."""
    if world_size() == 1:
        return dict(values)
    names = sorted(values)
    total = sum_tensor(torch.tensor([float(values[name]) for name in names], dtype=torch.float64))
    return dict(zip(names, total.tolist(), strict=True))


def broadcast_buffers(module: torch.nn.Module) -> None:
    """Give every rank the main rank's buffers (running statistics), so that all evaluate one network."""
    if world_size() > 1:
        for buffer in module.buffers():
            dist.broadcast(buffer, 0)
