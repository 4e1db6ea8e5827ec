"""What a network costs in the unit of the target: counted, or predicted from timed blocks and then timed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from potstill import measure
from potstill.batch import Inputs, ask
from potstill.errors import UserError
from potstill.prune.settings import Quantity, TargetConfig

__all__ = ["BlockTimes", "Gauge", "noise"]

RUNS = 40
BLOCK_RUNS = 15
ATTEMPTS = 3
FINEST = 0.05
"""Two timings of one network may differ by this share; the target is met within it."""


class _Block(nn.Module):
    """A block with all that it was given beside its first input."""

    def __init__(self, block: nn.Module, others: tuple[Any, ...], named: Mapping[str, Any]) -> None:
        super().__init__()
        self.block, self.others, self.named = block, others, dict(named)

    def forward(self, first: Tensor) -> Any:
        return self.block(first, *self.others, **self.named)


class BlockTimes:
    """A table of measured blocks: each shape of block is timed once, a network is their sum and the rest.

    Args:
        original: The network before anything is removed.
        example: Its input.
        blocks: Gives the paths of a network's blocks.
    """

    def __init__(
        self, original: nn.Module, example: Inputs, blocks: Callable[[nn.Module], Sequence[str]]
    ) -> None:
        self.example, self.blocks = example, blocks
        self.table: dict[tuple[Any, ...], float] = {}
        whole = measure.latency({"whole": (original, example)}, runs=RUNS)["whole"].median_ms
        self.rest = max(0.0, whole - self._blocks(original))

    def __call__(self, model: nn.Module) -> float:
        """Predicted milliseconds of one forward pass."""
        return self.rest + self._blocks(model)

    def _blocks(self, model: nn.Module) -> float:
        """The sum of its blocks' times; new shapes are timed."""
        calls: dict[str, tuple[Tensor, nn.Module]] = {}

        def note(path: str, block: nn.Module, given: tuple[Any, ...], named: Mapping[str, Any]) -> None:
            calls[path] = given[0].clone(), _Block(block, given[1:], named) if given[1:] or named else block

        handles = [
            model.get_submodule(path).register_forward_pre_hook(partial(note, path), with_kwargs=True)
            for path in self.blocks(model)
        ]
        with torch.no_grad():
            ask(model.eval(), self.example)
        for handle in handles:
            handle.remove()
        total = 0.0
        for path, (given, call) in calls.items():
            block = model.get_submodule(path)
            key = (type(block), tuple(given.shape), *(tuple(each.shape) for each in block.parameters()))
            if key not in self.table:
                timed = measure.latency({"block": (call, given)}, runs=BLOCK_RUNS)
                self.table[key] = timed["block"].median_ms
            total += self.table[key]
        return total


@dataclass(frozen=True)
class Gauge:
    """Counts or times networks.

    Attributes:
        target: What is aimed at.
        original: What shares refer to.
        example: One input for counts, a batch of the target's size for times.
        whole: The original's own figure; milliseconds for a time.
        goal: What is aimed at, in the same unit.
        times: The table of blocks, for a time.
    """

    target: TargetConfig
    original: nn.Module
    example: Inputs
    whole: float
    goal: float
    times: BlockTimes | None = None

    @classmethod
    def of(
        cls,
        target: TargetConfig,
        original: nn.Module,
        example: Inputs,
        blocks: Callable[[nn.Module], Sequence[str]],
    ) -> Gauge:
        """A gauge for a target.

        Args:
            target: The target.
            original: The network before anything is removed.
            example: Its input; see :class:`Gauge`.
            blocks: Gives the paths of the blocks of what is left of it.

        Raises:
            UserError: If the target is not below the original's own figure, or this machine's timings are too
                noisy to tell whether it is met.
        """
        quantity = target.quantity
        if quantity != "latency":
            whole = _count(quantity, original, example)
            return cls(target, original, example, whole, target.absolute(whole))
        whole, apart = noise(original, example)
        goal = target.absolute(whole, _tokens(example))
        if apart > min(FINEST, 1 - goal / whole):
            raise UserError(
                f"{target.where}.{target.given[0]}",
                f"cannot be resolved: the same network, timed twice in turns, differs by {apart:.1%} around "
                f"{whole:.3g} ms; {target.remedy}",
            )
        return cls(target, original, example, whole, goal, BlockTimes(original, example, blocks))

    @property
    def quantity(self) -> Quantity:
        """What is counted or timed."""
        return self.target.quantity

    def predicted(self, model: nn.Module) -> float:
        """The cost without timing the whole network; exact for counts."""
        return self.times(model) if self.times is not None else self.measured(model)

    def measured(self, model: nn.Module) -> float:
        """The cost as it is; a time is measured in turns with the original's and scaled to :attr:`whole`."""
        if self.quantity != "latency":
            return _count(self.quantity, model, self.example)
        pairs = {"original": (self.original, self.example), "model": (model, self.example)}
        timed = measure.latency(pairs, runs=RUNS)
        return self.whole * timed["model"].median_ms / timed["original"].median_ms

    def written(self, value: float) -> str:
        """A cost, as people read it."""
        if self.target.given[0] == "tokens_per_second":
            return f"{value:.4g} ms ({1000 * _tokens(self.example) / value:.4g} tokens a second)"
        if self.quantity == "latency":
            return f"{value:.4g} ms"
        return f"{value:,.0f} {'MACs' if self.quantity == 'macs' else self.quantity}"

    def unit_cost(self, model: nn.Module) -> float:
        """A count that every single unit changes: multiply-accumulates stand for time."""
        return _count("macs" if self.quantity == "latency" else self.quantity, model, self.example)

    @property
    def by_shapes(self) -> bool:
        """Whether the cost can be told from shapes alone, without weights."""
        return self.quantity in ("parameters", "bytes")


def _count(quantity: Quantity, model: nn.Module, example: Inputs) -> float:
    if quantity == "parameters":
        return float(measure.parameters(model))
    if quantity == "bytes":
        return float(measure.size_bytes(model))
    first = example if isinstance(example, Tensor) else next(iter(example.values()))
    return measure.macs(model, example) / len(first)


def _tokens(example: Inputs) -> int:
    """Tokens of the inputs, 0 where there are none."""
    return 0 if isinstance(example, Tensor) else next(iter(example.values())).numel()


def noise(model: nn.Module, example: Inputs) -> tuple[float, float]:
    """Median milliseconds, and by which share two timings of the same network in turns differ at best."""
    found = []
    for _ in range(ATTEMPTS):
        timed = measure.latency({"one": (model, example), "other": (model, example)}, runs=RUNS)
        one, other = timed["one"].median_ms, timed["other"].median_ms
        found.append((abs(one / other - 1), (one + other) / 2))
        if found[-1][0] < FINEST / 2:
            break
    apart, whole = min(found)
    return whole, apart
