"""What validation says after each epoch: the history, the best epoch so far, and when patience ends."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from potstill.train.contract import State

__all__ = ["Evaluate", "Validation"]

Evaluate = Callable[[nn.Module], Mapping[str, float]]


class Validation:
    """The validation metrics of one training.

    Args:
        evaluate: Validation metrics of a network.
        metric: Which of them decides the best epoch; higher is better.
        patience: Epochs without a better metric after which to stop, ``None`` for never.

    Attributes:
        history: One row an epoch.
    """

    def __init__(self, evaluate: Evaluate, metric: str, patience: int | None) -> None:
        self._evaluate, self._metric, self._patience = evaluate, metric, patience
        self.history: list[dict[str, float]] = []
        self._best: tuple[float, int, State] | None = None

    def after(self, epoch: int, step: int, network: nn.Module, kept: Callable[[], State]) -> dict[str, Any]:
        """Evaluate ``network`` after an epoch; ``kept`` copies its weights if they are the best so far.

        Returns:
            A row for the observer.
        """
        row = {"epoch": float(epoch), "step": float(step), **self._evaluate(network)}
        self.history.append(row)
        if self._best is None or row[self._metric] > self._best[0]:
            self._best = (row[self._metric], len(self.history), kept())
        return {**row, "step": step, "epoch": epoch}

    @property
    def patience_ended(self) -> bool:
        """Whether it is too long since the best epoch."""
        return self._patience is not None and len(self.history) - self.best_epoch >= self._patience

    @property
    def best_epoch(self) -> int:
        """The best epoch, counted from 1; 0 before the first."""
        return 0 if self._best is None else self._best[1]

    def best_state(self, otherwise: State) -> State:
        """Weights after the best epoch."""
        return otherwise if self._best is None else self._best[2]

    def state(self) -> dict[str, Any]:
        """What a checkpoint needs."""
        return {"history": self.history, "best": self._best}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state` gave."""
        self.history, self._best = state["history"], state["best"]
