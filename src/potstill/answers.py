"""What a teacher answered, kept in memory for trainings that see the very same batches.

The methods of a comparison share data order and views, so the teacher's answer to a batch is the same for
all of them; it is computed once for each seed, as long as memory lasts.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, cast

from torch import Tensor, nn

from potstill.batch import Batch, Inputs, Signals
from potstill.losses.heads import Head
from potstill.matching.recording import LayerShape
from potstill.matching.taps import INPUT
from potstill.teachers import Teacher, as_teacher

__all__ = ["Answers", "Remembered"]

OUTPUT = ""
Key = tuple[int, tuple[int, ...]]


class Answers:
    """A store of answers by batch and layer, for one seed at a time.

    Args:
        most_bytes: Nothing more is kept beyond this size; what is there stays.

    Attributes:
        head: What makes logits of what is kept of a language model, where those are hidden states.

    >>> import torch
    >>> answers = Answers(most_bytes=100)
    >>> answers.keep((0, (1, 2)), {"": torch.zeros(2, 3)})
    >>> sorted(answers.of((0, (1, 2)))), answers.size
    ([''], 24)
    """

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes = most_bytes
        self.size = 0
        self.head: Head | None = None
        self._seed: int | None = None
        self._kept: dict[Key, dict[str, Tensor]] = {}

    def begin(self, seed: int) -> None:
        """Forget everything where another seed begins: its batches are others."""
        if seed != self._seed:
            self._seed, self._kept, self.size = seed, {}, 0

    def of(self, key: Key) -> dict[str, Tensor]:
        """What is kept of a batch, by layer; the output stands under the empty name."""
        return self._kept.get(key, {})

    def keep(self, key: Key, tensors: dict[str, Tensor]) -> None:
        """Keep what a batch lacks, where there is room."""
        kept = self._kept.setdefault(key, {})
        for name, tensor in tensors.items():
            room = tensor.numel() * tensor.element_size()
            if name not in kept and self.size + room <= self.most_bytes:
                kept[name] = tensor.clone()
                self.size += room


class Remembered(nn.Module):
    """A frozen teacher that looks its answer up before it computes one.

    Args:
        model: The trained network, or a teacher.
        answers: Where answers are kept.
        paths: Layers to tap.

    >>> import torch
    >>> teacher = Remembered(nn.Linear(3, 2), Answers(most_bytes=1000))
    >>> batch = Batch({"student": torch.ones(4, 3)}, None, None, torch.arange(4))
    >>> torch.equal(teacher(batch).output, teacher(batch).output), teacher.computed
    (True, 1)
    """

    def __init__(self, model: nn.Module, answers: Answers, paths: Sequence[str] = ()) -> None:
        super().__init__()
        self.teacher = cast(Teacher, as_teacher(model)).tapping(paths)
        self.paths = tuple(paths)
        self.computed = 0
        # A copy of the scheme looks into the same store: it is no part of the module's state.
        object.__setattr__(self, "answers", answers)
        self.eval()

    @property
    def network(self) -> nn.Module:
        """The wrapped network."""
        return self.teacher.network

    def layers(self, inputs: Inputs) -> Sequence[LayerShape]:
        """The wrapped teacher's layers."""
        return self.teacher.layers(inputs)

    def tapping(self, paths: Sequence[str], pooled: Collection[str] = ()) -> nn.Module:
        """The same teacher with ``paths`` tapped; what is differentiated by its input is not remembered."""
        if INPUT in paths:
            return cast(nn.Module, self.teacher.tapping(paths))
        return Remembered(cast(nn.Module, self.teacher), self.__dict__["answers"], paths)

    def train(self, mode: bool = True) -> Remembered:
        """Stay in eval mode whatever ``mode`` says."""
        super().train(False)
        return self

    def forward(self, batch: Batch, given: Any = None) -> Signals:
        """Answer to a batch, without a gradient."""
        answers: Answers = self.__dict__["answers"]
        key = (batch.view, tuple(batch.index.tolist()))
        kept = answers.of(key)
        if OUTPUT not in kept or any(path not in kept for path in self.paths):
            self.computed += 1
            signals: Signals = self.teacher(batch, given)
            answers.keep(key, {OUTPUT: signals.output, **signals.taps})
            answers.head = signals.head
            return signals
        return Signals(kept[OUTPUT], {path: kept[path] for path in self.paths}, answers.head)
