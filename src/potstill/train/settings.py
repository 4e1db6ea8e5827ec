"""The recipe's ``train`` section."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Annotated, Literal

from potstill.losses import Range

__all__ = ["CorrectionConfig", "OptimizerConfig", "TrainConfig"]

COUNT = Range(least=1)
SHARE = Range(least=0, most=1)


@dataclass(frozen=True, kw_only=True)
class CorrectionConfig:
    """How long a teacher is trained on the data before it teaches; all else is as ``train`` says."""

    steps: Annotated[int, COUNT]
    """Optimiser steps."""
    learning_rate: Annotated[float, Range(above=0)]
    """Peak learning rate."""
    batch_size: Annotated[int, COUNT] | None = None
    """Samples a step; ``None``: as ``train`` says."""


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """How one network beside the student learns, where that differs from ``train``; see there."""

    optimizer: Literal["sgd", "adamw"] | None = None
    """SGD with momentum, or AdamW."""
    learning_rate: Annotated[float, Range(above=0)] | None = None
    """Peak learning rate."""
    momentum: Annotated[float, Range(least=0, most=0.9999)] | None = None
    """Momentum of SGD."""
    nesterov: bool | None = None
    """Nesterov's momentum."""
    betas: tuple[Annotated[float, SHARE], Annotated[float, SHARE]] | None = None
    """Decays of AdamW's averages."""
    weight_decay: Annotated[float, Range(least=0)] | None = None
    """Weight decay."""
    schedule: Literal["cosine", "constant", "step"] | None = None
    """How the learning rate falls after the warm-up."""
    warmup: Annotated[float, SHARE] | None = None
    """Share of the steps in which it rises."""
    milestones: tuple[Annotated[float, SHARE], ...] | None = None
    """Shares of the run at which ``step`` lowers it."""
    decay: Annotated[float, Range(above=0, most=1)] | None = None
    """Factor at each milestone."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How long and how both arms are trained."""

    epochs: Annotated[float, Range(above=0)] = 30.0
    """Passes over the training data; fractions are allowed."""
    steps: Annotated[int, COUNT] | None = None
    """Optimiser steps, in place of ``epochs``."""
    batch_size: Annotated[int, COUNT] = 128
    """Samples of a batch, over all processes."""
    accumulate: Annotated[int, COUNT] = 1
    """Batches whose gradients make one step."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """SGD with momentum, or AdamW."""
    learning_rate: Annotated[float, Range(above=0)] = 0.1
    """Peak learning rate."""
    momentum: Annotated[float, Range(least=0, most=0.9999)] = 0.9
    """Momentum of SGD."""
    nesterov: bool = True
    """Nesterov's momentum."""
    betas: tuple[Annotated[float, SHARE], Annotated[float, SHARE]] = (0.9, 0.999)
    """Decays of AdamW's averages of gradients and of their squares; (0.5, 0.999) is usual for GANs."""
    weight_decay: Annotated[float, Range(least=0)] = 5e-4
    """Weight decay."""
    schedule: Literal["cosine", "constant", "step"] = "cosine"
    """How the learning rate falls after the warm-up."""
    warmup: Annotated[float, SHARE] = 0.05
    """Share of the steps in which it rises."""
    milestones: tuple[Annotated[float, SHARE], ...] = (0.5, 0.75)
    """Shares of the run at which ``step`` lowers it."""
    decay: Annotated[float, Range(above=0, most=1)] = 0.1
    """Factor at each milestone."""
    others: Mapping[str, OptimizerConfig] = field(default_factory=dict)
    """What is different for a network beside the student, by its name: ``peer2``, ``discriminator``."""
    clip: Annotated[float, Range(above=0)] | None = None
    """Largest norm of all gradients together."""
    label_smoothing: Annotated[float, Range(least=0, most=0.9999)] = 0.0
    """Share of the labels' probability that is spread over all classes."""
    ema: Annotated[float, Range(above=0, most=0.999999)] | None = None
    """Decay of an average of the student's weights, which is then what is evaluated and kept."""
    precision: Literal["auto", "float32", "bf16"] = "auto"
    """``auto`` takes bf16 only where the processor has it and computes quicker in it."""
    compile: bool = False
    """Compile what is trained with ``torch.compile``."""
    select: Literal["last", "best"] = "last"
    """Which weights count: the last epoch's, or the best by validation."""
    patience: Annotated[int, COUNT] | None = None
    """Stop after this many epochs without a better validation metric."""
    checkpoint_every: Annotated[int, COUNT] | None = None
    """Steps between checkpoints; by default each epoch, and each minute where that takes no 3 %."""
    gradient_norms: Annotated[int, Range(least=0)] | None = None
    """Steps between measurements of each part's gradient; 0 for none, by default as many as cost 2 %."""
    tensorboard: bool = False
    """Write TensorBoard files too."""
    device: str = "auto"
    """``auto``, ``cpu``, ``cuda`` or ``cuda:1``."""

    def of(self, name: str) -> TrainConfig:
        """What holds for one part of a scheme.

        >>> config = TrainConfig(others={"peer2": OptimizerConfig(learning_rate=0.01)})
        >>> config.of("peer1").learning_rate, config.of("peer2").learning_rate
        (0.1, 0.01)
        """
        own = asdict(self.others[name]) if name in self.others else {}
        return replace(self, **{key: value for key, value in own.items() if value is not None})
