"""What learns in a training: the parts of a scheme, their optimisers, and averages of its networks."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
import torch._functorch.config
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from potstill import distributed
from potstill.train.contract import Scheme, State
from potstill.train.optimise import clip_gradients, learning_rate, make_optimizer, set_learning_rate
from potstill.train.settings import TrainConfig

__all__ = ["Learners"]


class Learners:
    """The trainable parts of a scheme, compiled and spread over processes as asked.

    Args:
        scheme: Its ``parts`` are wrapped in place where there are several processes.
        config: Optimiser, clipping, averaging, compilation.

    Attributes:
        optimizers: One per trainable part, by the part's name.
    """

    def __init__(self, scheme: Scheme, config: TrainConfig) -> None:
        self._scheme = scheme
        self._clip = config.clip
        self._decay = config.ema
        self._averages: dict[str, AveragedModel] = {}
        self.begin()
        modules: dict[str, nn.Module] = {}
        for stage in scheme.stages:
            for phase in stage.phases:
                modules.update(scheme.trainable(stage.name, phase))
        self._configs = {name: config.of(name) for name in modules}
        self.optimizers: dict[str, Optimizer] = {
            name: make_optimizer(module, self._configs[name]) for name, module in modules.items()
        }
        if config.compile:
            # A compiled backward pass gives its buffers away; measuring gradients needs them once more.
            torch._functorch.config.donated_buffer = False
        for name in self.optimizers:
            if config.compile:
                scheme.parts[name].compile()
            if distributed.world_size() > 1:
                scheme.parts[name] = DistributedDataParallel(scheme.parts[name])

    def begin(self) -> None:
        """Start averages of the networks that are watched anew, with a stage."""
        if self._decay is not None:
            self._averages = {
                name: _averaged(self._scheme.networks[name], self._decay) for name in self._scheme.watched
            }

    @property
    def shown(self) -> dict[str, nn.Module]:
        """The networks that are evaluated: averages, where there are any."""
        return {name: self._shown(name) for name in self._scheme.watched}

    def _shown(self, name: str) -> nn.Module:
        average = self._averages.get(name)
        network: nn.Module = self._scheme.networks[name] if average is None else average.module
        return network

    def set_learning_rate(self, step: int, total: int) -> None:
        """Give every optimiser the learning rate of a step of its stage."""
        for name, optimizer in self.optimizers.items():
            set_learning_rate(optimizer, learning_rate(self._configs[name], step, total))

    @contextlib.contextmanager
    def synchronised(self, names: Iterable[str], *, last: bool) -> Iterator[None]:
        """Let processes exchange gradients after the last batch of a step only."""
        with contextlib.ExitStack() as stack:
            for name in names:
                part = self._scheme.parts[name]
                if isinstance(part, DistributedDataParallel) and not last:
                    stack.enter_context(part.no_sync())
            yield

    def update(self, names: Iterable[str]) -> None:
        """Let the parts ``names`` take one step along their gradients, and forget the gradients."""
        names = list(names)
        clip_gradients((self._bare(name) for name in names), self._clip)
        for name in names:
            self.optimizers[name].step()
            self.optimizers[name].zero_grad(set_to_none=True)

    def update_averages(self) -> None:
        """Let the averages follow their networks."""
        for name, average in self._averages.items():
            average.update_parameters(self._scheme.networks[name])

    def first_not_finite(self) -> str | None:
        """Name of the first weight or statistic that is infinite or not a number."""
        for name in self.optimizers:
            for key, tensor in self._bare(name).state_dict().items():
                if not bool(torch.isfinite(tensor).all()):
                    return f"{name}: {key.removeprefix('tapped.model.')}"
        return None

    def state(self) -> dict[str, Any]:
        """Everything a checkpoint needs to know of what learns."""
        return {
            "parts": {name: self._bare(name).state_dict() for name in self._scheme.parts},
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
            "averages": {name: average.state_dict() for name, average in self._averages.items()},
        }

    def restore(self, state: Mapping[str, Any], stage: str) -> None:
        """Put everything back to what :meth:`state` gave within ``stage``."""
        for name in self._scheme.parts:
            self._bare(name).load_state_dict(state["parts"][name])
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
        self._scheme.enter(stage)
        self.begin()
        for name, average in self._averages.items():
            average.load_state_dict(state["averages"][name])

    def settle(self, name: str, state: State) -> None:
        """Give a finished network the weights that were selected."""
        self._scheme.networks[name].load_state_dict(state)

    def kept(self, name: str) -> State:
        """A copy of a network's state dict on the CPU; of its average, where it has one."""
        return {
            key: tensor.detach().to("cpu", copy=True)
            for key, tensor in self._shown(name).state_dict().items()
        }

    def _bare(self, name: str) -> nn.Module:
        part = self._scheme.parts[name]
        return part.module if isinstance(part, DistributedDataParallel) else part


def _averaged(network: nn.Module, decay: float) -> AveragedModel:
    rule = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
    return AveragedModel(network, multi_avg_fn=rule, use_buffers=True)
