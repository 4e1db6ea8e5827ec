"""Who teaches: a frozen network, or several that average their probabilities.

All are called alike, ``teacher(batch, given=None) -> Signals``, so a scheme cannot tell them apart.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Sequence
from typing import Any, Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn

from potstill.batch import Batch, Inputs, Signals
from potstill.errors import UserError
from potstill.matching.recording import LayerShape, record
from potstill.matching.taps import INPUT, Tapped

__all__ = ["Ensemble", "Frozen", "MixedAnswers", "Teacher", "as_teacher", "mean_log_probabilities"]


@runtime_checkable
class Teacher(Protocol):
    """What a scheme asks of a teacher."""

    @property
    def network(self) -> nn.Module:
        """The network whose layers can be tapped."""

    def layers(self, inputs: Inputs) -> Sequence[LayerShape]:
        """Its layers that can be tapped, as they are for an example."""

    def tapping(self, paths: Sequence[str], pooled: Collection[str] = ()) -> Teacher:
        """The same teacher, answering with the tensors at ``paths`` too.

        Of ``pooled`` among them only the mean over positions is asked; it may answer with that.
        """

    def __call__(self, batch: Batch, given: Any = None) -> Signals:
        """What it answers to ``batch``, without gradients unless ``:input`` is tapped."""


class Frozen(nn.Module):
    """A trained network that only answers: always in eval mode, its parameters never with a gradient.

    The network itself is frozen (``requires_grad`` off, eval mode), not a copy of it. It keeps a graph, and
    the memory of one, only where ``:input`` is tapped: its answer then depends on its input.

    Args:
        model: The trained network.
        paths: Layers to tap.
        role: Whose inputs of the batch it takes, and what messages call it.

    Raises:
        UserError: If a path names no layer.

    >>> teacher = Frozen(nn.Linear(3, 2))
    >>> batch = Batch({"student": torch.zeros(4, 3)}, None, None, torch.arange(4))
    >>> teacher.train()(batch).output.shape, teacher.training
    (torch.Size([4, 2]), False)
    """

    def __init__(self, model: nn.Module, paths: Sequence[str] = (), *, role: str = "teacher") -> None:
        super().__init__()
        self.role = role
        self.tapped = Tapped(model.eval().requires_grad_(False), paths, role=role)
        self.eval()

    @property
    def network(self) -> nn.Module:
        """The wrapped network."""
        return self.tapped.model

    def layers(self, inputs: Inputs) -> Sequence[LayerShape]:
        """The network's layers."""
        return record(self.network, inputs)

    def tapping(self, paths: Sequence[str], pooled: Collection[str] = ()) -> Frozen:
        """The same network with ``paths`` tapped."""
        return Frozen(self.network, paths, role=self.role)

    def train(self, mode: bool = True) -> Frozen:
        """Stay in eval mode whatever ``mode`` says."""
        super().train(False)
        return self

    def forward(self, batch: Batch, given: Any = None) -> Signals:
        """Answer to a batch.

        Args:
            batch: Its inputs of the teacher's role are taken.
            given: What the student answered: a detector is scored on the student's regions.

        Returns:
            Output and taps, without a gradient; where ``:input`` is tapped, with one by the input.
        """
        if self.network.training:  # someone called .train() on the network itself
            self.network.eval()
        with torch.set_grad_enabled(INPUT in self.tapped.paths and torch.is_grad_enabled()):
            inputs, beside = batch.input(self.role), getattr(self.network, "beside", None)
            if given is not None and beside is not None:
                inputs = beside(inputs, given)
            signals: Signals = self.tapped(inputs)
        return signals


class Ensemble(nn.Module):
    """Several teachers that answer as one: the logarithm of the mean of their probabilities.

    It is called as a teacher, with a batch, or as a network, with what all of them take.

    Args:
        teachers: Networks or teachers; taps come from the first.

    Raises:
        UserError: If there is none.

    >>> even, sure = nn.Linear(1, 2), nn.Linear(1, 2)
    >>> _ = even.requires_grad_(False).weight.zero_(), even.bias.zero_()
    >>> _ = sure.requires_grad_(False).weight.zero_(), sure.bias.copy_(torch.tensor([50.0, 0.0]))
    >>> batch = Batch({"student": torch.zeros(1, 1)}, None, None, torch.arange(1))
    >>> Ensemble([even, sure])(batch).output.exp()
    tensor([[0.7500, 0.2500]])
    """

    def __init__(self, teachers: Sequence[nn.Module]) -> None:
        super().__init__()
        if not teachers:
            raise UserError("teacher", "an ensemble needs at least one teacher, got none")
        self.teachers = nn.ModuleList([as_teacher(teacher) for teacher in teachers])
        self.differentiable = False
        self.eval()

    @property
    def network(self) -> nn.Module:
        """The first teacher's network, whose layers can be tapped."""
        return cast(Frozen, self.teachers[0]).network

    @property
    def networks(self) -> list[nn.Module]:
        """The networks of all teachers."""
        return [cast(Teacher, teacher).network for teacher in self.teachers]

    def layers(self, inputs: Inputs) -> Sequence[LayerShape]:
        """The first teacher's layers."""
        return record(self.network, inputs)

    def tapping(self, paths: Sequence[str], pooled: Collection[str] = ()) -> Ensemble:
        """The same teachers with ``paths`` of the first tapped."""
        first, *others = [cast(Frozen, teacher) for teacher in self.teachers]
        if INPUT in paths:  # the mean of all depends on the input through each of them
            others = [teacher.tapping([INPUT]) for teacher in others]
        ensemble = Ensemble([first.tapping(paths), *others])
        ensemble.differentiable = INPUT in paths
        return ensemble

    def train(self, mode: bool = True) -> Ensemble:
        """Stay in eval mode whatever ``mode`` says."""
        super().train(False)
        return self

    def forward(self, batch: Batch | Tensor, given: Any = None) -> Signals:
        """Answer to a batch.

        Args:
            batch: What every teacher answers to, or the one tensor that all of them take, ``(N, ...)``.
            given: Passed on to each.

        Returns:
            Log-probabilities ``(N, C)`` as output, and the first teacher's taps.

        Raises:
            UserError: If the teachers disagree on the number of classes.
        """
        if isinstance(batch, Tensor):
            batch = Batch({"student": batch}, None, None, torch.arange(len(batch)))
        with torch.set_grad_enabled(self.differentiable and torch.is_grad_enabled()):
            batch = _by_its_input(batch) if torch.is_grad_enabled() else batch
            answers: list[Signals] = [teacher(batch, given) for teacher in self.teachers]
            shapes = [tuple(answer.output.shape) for answer in answers]
            if len(set(shapes)) > 1:
                raise UserError("teacher", f"an ensemble needs outputs of one shape, got {shapes}")
            return Signals(mean_log_probabilities([answer.output for answer in answers]), answers[0].taps)


class MixedAnswers(nn.Module):
    """A teacher that is asked about the two plain images of a mixture, and whose answers are mixed.

    Formula: ``log(share * p(own) + (1 - share) * p(partner))``, as labels are mixed.

    Args:
        teacher: A network or a teacher.

    >>> from potstill.batch import Mixture
    >>> sure = nn.Identity()
    >>> plain = torch.tensor([[9.0, -9.0], [-9.0, 9.0]])
    >>> mixture = Mixture(torch.tensor([1]), torch.tensor([0.75]))
    >>> batch = Batch({"student": plain[:1], "teacher": plain}, None, None, torch.arange(1), mixture=mixture)
    >>> MixedAnswers(sure)(batch).output.exp()
    tensor([[0.7500, 0.2500]])
    """

    def __init__(self, teacher: nn.Module) -> None:
        super().__init__()
        self.teacher = as_teacher(teacher)
        self.eval()

    @property
    def network(self) -> nn.Module:
        """The teacher's network."""
        return cast(Teacher, self.teacher).network

    def layers(self, inputs: Inputs) -> Sequence[LayerShape]:
        """The teacher's layers."""
        return cast(Teacher, self.teacher).layers(inputs)

    def tapping(self, paths: Sequence[str], pooled: Collection[str] = ()) -> MixedAnswers:
        """Only answers can be mixed: what is between belongs to one image.

        Raises:
            UserError: If there is anything to tap.
        """
        if paths:
            raise UserError(
                "augment.mix_targets", f"mixes answers alone; a term compares the layer {paths[0]!r}"
            )
        return self

    def train(self, mode: bool = True) -> MixedAnswers:
        """Stay in eval mode whatever ``mode`` says."""
        super().train(False)
        return self

    def forward(self, batch: Batch, given: Any = None) -> Signals:
        """Log-probabilities of the mixtures ``(N, C)``; of a batch without any, what the teacher answers."""
        signals: Signals = self.teacher(batch, given)
        if batch.mixture is None:
            return signals
        logs = _precise(signals.output).log_softmax(dim=-1)
        share = batch.mixture.share.to(logs)[:, None]
        partner = logs[batch.mixture.partner.to(logs.device)]
        return Signals(torch.logaddexp(logs[: len(batch)] + share.log(), partner + (1 - share).log()))


def _by_its_input(batch: Batch) -> Batch:
    """The batch with one input for all teachers to be differentiated by."""
    inputs = batch.input("teacher")
    if not isinstance(inputs, Tensor) or inputs.requires_grad or not inputs.is_floating_point():
        return batch
    return dataclasses.replace(batch, inputs={**batch.inputs, "teacher": inputs.detach().requires_grad_()})


def mean_log_probabilities(logits: Sequence[Tensor]) -> Tensor:
    """Logarithm of the mean of the softmax probabilities, ``(N, C)``, in float32 or better."""
    logs = [_precise(each).log_softmax(dim=-1) for each in logits]
    return torch.stack(logs).logsumexp(dim=0) - math.log(len(logs))


def _precise(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def as_teacher(model: nn.Module) -> nn.Module:
    """``model`` where it is a teacher already, else ``Frozen(model)``."""
    return model if hasattr(type(model), "tapping") else Frozen(model)  # asking for .network may load it
