"""What a network costs: parameters, multiply-accumulates, bytes, and time. The only stopwatch."""

from __future__ import annotations

import contextlib
import copy
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from potstill.batch import Inputs, ask

__all__ = [
    "Latency",
    "Measured",
    "OneInput",
    "Stopwatch",
    "latency",
    "macs",
    "macs_of_one",
    "measure",
    "parameters",
    "random_input",
    "size_bytes",
]

RUNS = 30
WARMUP = 3
LONGEST_SECONDS = 10.0
OneInput = tuple[int, ...] | Mapping[str, Tensor]
"""The shape of one input, or one input of a network that takes tensors by name."""


class Stopwatch:
    """Seconds since it was made.

    >>> Stopwatch().seconds >= 0
    True
    """

    def __init__(self) -> None:
        self._start = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Seconds so far."""
        return time.perf_counter() - self._start


@dataclass(frozen=True)
class Latency:
    """Time of one forward pass in milliseconds.

    Attributes:
        median_ms: Half of the passes took less.
        low_ms: A tenth of the passes took less.
        high_ms: A tenth of the passes took more.
        runs: Number of passes timed.
    """

    median_ms: float
    low_ms: float
    high_ms: float
    runs: int


@dataclass(frozen=True)
class Measured:
    """What a network costs.

    Attributes:
        parameters: Number of trainable and frozen parameters.
        macs: Multiply-accumulates of convolutions and matrix products for one image.
        bytes: Size of its weights and buffers.
        latency_ms: Time of a forward pass by batch size.
    """

    parameters: int
    macs: int
    bytes: int
    latency_ms: Mapping[int, Latency]


def parameters(model: nn.Module) -> int:
    """Number of parameters; a shared one counts once.

    >>> parameters(nn.Linear(3, 2))
    8
    """
    return sum(parameter.numel() for parameter in model.parameters())


def size_bytes(model: nn.Module) -> int:
    """Bytes of all weights and buffers in the state dict; shared memory counts once.

    >>> size_bytes(nn.Linear(3, 2))
    32
    """
    tensors = {
        (tensor.untyped_storage()._cdata, tensor.storage_offset()): tensor
        for tensor in model.state_dict().values()
        if tensor.numel()
    }
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def macs(model: nn.Module, example: Inputs) -> int:
    """Multiply-accumulates of one forward pass: convolutions, matrix products, attention, recurrent layers.

    Counted by ``torch.utils.flop_counter``, which counts two operations each; normalisation,
    activations and pooling are left out, as papers do. Fused kernels that it cannot see into are
    switched off or given a formula, so that a transformer is counted whole.

    Args:
        model: The network; left in the mode it was in.
        example: Its input, ``(N, ...)``; the count is for all ``N``.

    Returns:
        The count.

    Example:
        >>> macs(nn.Linear(3, 2), torch.zeros(1, 3))
        6
    """
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(
        display=False,
        custom_mapping={
            torch.ops.aten.mkldnn_rnn_layer: _recurrent_flops,
            torch.ops.aten._cudnn_rnn: _recurrent_flops,
        },
    )
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad(), _plain_attention(), counter:
            ask(model, example)
    finally:
        for module, training in modes.items():
            module.training = training
    return int(counter.get_total_flops()) // 2


def random_input(model: nn.Module, one: OneInput) -> Inputs:
    """One input of a network where it lives: random values of its shape, or the given one."""
    return _input(model, one, 1)


def macs_of_one(model: nn.Module, one: OneInput) -> int:
    """Multiply-accumulates for one input, or for random values of its shape."""
    return macs(model, random_input(model, one))


@contextlib.contextmanager
def _plain_attention() -> Iterator[None]:
    """Attention as matrix products: the counter takes its fused kernels for nothing at all."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def _recurrent_flops(inputs: Sequence[int], *arguments: Any, out_shape: Any = None, **options: Any) -> int:
    """Two operations for each position and weight of a fused recurrent kernel's matrices.

    Args:
        inputs: Shape ``(L, N, C)``, or ``(sum of lengths, C)`` where sequences are packed.
        arguments: The kernel's other arguments, shapes in place of tensors; of cuDNN's, the first is
            the list of all weights, of oneDNN's the first two are the matrices.
        out_shape: Not needed.
        options: Not needed.
    """
    first = arguments[0]
    shapes = first if isinstance(first, list) else arguments[:2]
    return 2 * math.prod(inputs[:-1]) * sum(math.prod(shape) for shape in shapes if len(shape) == 2)


def latency(
    models: Mapping[str, tuple[nn.Module, Inputs]],
    *,
    runs: int = RUNS,
    warmup: int = WARMUP,
    seconds: float = LONGEST_SECONDS,
) -> dict[str, Latency]:
    """Time forward passes of several networks in turns, A B A B, so that a drifting clock hits all alike.

    Args:
        models: Each network (put in eval mode) and its input.
        runs: Passes of each.
        warmup: Passes of each before, not counted.
        seconds: Stop after this time, with at least three passes of each.

    Returns:
        Median and spread by name.
    """
    times: dict[str, list[float]] = {name: [] for name in models}
    watch = Stopwatch()
    with torch.no_grad():
        for number in range(-warmup, runs):
            if number >= 3 and watch.seconds > seconds:
                break
            for name, (model, example) in models.items():
                elapsed = _timed(model.eval(), example)
                if number >= 0:
                    times[name].append(1e3 * elapsed)
    return {name: _spread(values) for name, values in times.items()}


def _timed(model: nn.Module, example: Inputs) -> float:
    tensors = list(example.values()) if isinstance(example, Mapping) else [example]
    cuda = any(tensor.is_cuda for tensor in tensors)
    if cuda:
        torch.cuda.synchronize()
    watch = Stopwatch()
    ask(model, example)
    if cuda:
        torch.cuda.synchronize()
    return watch.seconds


def _spread(values: Sequence[float]) -> Latency:
    low, median, high = np.percentile(values, [10, 50, 90])
    return Latency(float(median), float(low), float(high), len(values))


def measure(
    models: Mapping[str, nn.Module],
    shapes: Mapping[str, OneInput],
    *,
    batches: Sequence[int] = (1, 64),
    runs: int = RUNS,
) -> dict[str, Measured]:
    """Everything that networks cost, timed in turns on the device where each lives, in float32.

    Args:
        models: The networks by name; copies are measured.
        shapes: Shape of one input of each, ``(C, H, W)``, or one input, ``{"input_ids": (1, L)}``.
        batches: Batch sizes to time.
        runs: Timed passes of each.

    Example:
        >>> nets = {"big": nn.Linear(8, 4), "small": nn.Linear(8, 1)}
        >>> found = measure(nets, {"big": (8,), "small": (8,)}, batches=[1], runs=3)
        >>> found["big"].macs, found["small"].parameters, found["small"].latency_ms[1].runs
        (32, 9, 3)
    """
    copies = {name: copy.deepcopy(model).float().eval() for name, model in models.items()}
    times: dict[str, dict[int, Latency]] = {name: {} for name in models}
    for batch in batches:
        inputs = {name: _input(model, shapes[name], batch) for name, model in copies.items()}
        timed = latency({name: (copies[name], inputs[name]) for name in copies}, runs=runs)
        for name, result in timed.items():
            times[name][batch] = result
    return {
        name: Measured(
            parameters=parameters(model),
            macs=macs_of_one(model, shapes[name]),
            bytes=size_bytes(model),
            latency_ms=times[name],
        )
        for name, model in copies.items()
    }


def _input(model: nn.Module, one: OneInput, count: int) -> Inputs:
    """Random input where the network lives, laid out as its convolutions are; a given one is repeated."""
    first = next(model.parameters(), None)
    device = None if first is None else first.device
    if isinstance(one, Mapping):
        return {name: torch.cat([tensor.to(device)] * count) for name, tensor in one.items()}
    example = torch.randn((count, *one), device=device)
    if len(one) == 3 and any(_channels_last(parameter) for parameter in model.parameters()):
        example = example.contiguous(memory_format=torch.channels_last)
    return example


def _channels_last(parameter: Tensor) -> bool:
    return (
        parameter.dim() == 4
        and parameter.shape[1] > 1
        and not parameter.is_contiguous()
        and parameter.is_contiguous(memory_format=torch.channels_last)
    )
