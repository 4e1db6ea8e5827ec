"""What validation says after each epoch: the history, the best epoch so far, and when patience ends."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from potstill.train.contract import State

__all__ = ["TOGETHER", "Evaluate", "Validation"]

Evaluate = Callable[[Mapping[str, nn.Module]], Mapping[str, Mapping[str, float]]]
TOGETHER = "together"
"""Under this name an evaluation may say more of several networks than each has for itself."""


class Validation:
    """The validation metrics of one training.

    Args:
        evaluate: Validation metrics of each of some networks, by name.
        metric: Which of them decides the best network and epoch.
        patience: Epochs without a better metric after which to stop, ``None`` for never.
        higher: Whether a higher metric is better.

    Attributes:
        history: One row an epoch: the metrics of the network that was best after it, and, of several, those
            of each as ``name.metric``.
    """

    def __init__(self, evaluate: Evaluate, metric: str, patience: int | None, *, higher: bool = True) -> None:
        self._sign = 1.0 if higher else -1.0
        self._evaluate, self._metric, self._patience = evaluate, metric, patience
        self.history: list[dict[str, float]] = []
        self._leader: str | None = None
        self._best: tuple[float, int, str, State] | None = None

    def begin(self) -> None:
        """Forget the best epoch: a stage begins."""
        self._best = self._leader = None

    def after(
        self,
        epoch: int,
        step: int,
        networks: Mapping[str, nn.Module],
        watched: Mapping[str, bool],
        kept: Callable[[str], State],
    ) -> dict[str, Any]:
        """Evaluate ``networks`` after an epoch.

        Args:
            epoch: Its number.
            step: Steps done.
            networks: What is evaluated, by name.
            watched: Which of them may be kept.
            kept: Copies the weights of one, if they are the best so far.

        Returns:
            A row for the observer.
        """
        found = self._evaluate(networks)
        leader = max(
            (name for name in networks if watched[name]),
            key=lambda name: self._sign * found[name][self._metric],
        )
        row = {"epoch": float(epoch), "step": float(step), **found[leader]}
        if len(networks) > 1:
            row |= {f"{name}.{self._metric}": found[name][self._metric] for name in networks}
            row |= found.get(TOGETHER, {})
        self.history.append(row)
        self._leader = leader
        quality = self._sign * row[self._metric]
        if self._best is None or quality > self._best[0]:
            self._best = (quality, len(self.history), leader, kept(leader))
        return {**row, "step": step, "epoch": epoch}

    @property
    def patience_ended(self) -> bool:
        """Whether it is too long since the best epoch."""
        return self._patience is not None and len(self.history) - self.best_epoch >= self._patience

    @property
    def best_epoch(self) -> int:
        """The best epoch, counted from 1; 0 before the first."""
        return 0 if self._best is None else self._best[1]

    def leader(self, watched: Mapping[str, bool]) -> str:
        """The network that was best after the newest epoch; before any, the first that may be kept."""
        return self._leader or next(name for name, keeps in watched.items() if keeps)

    def best(self, otherwise: tuple[str, State]) -> tuple[str, State]:
        """The best network and its weights after the best epoch."""
        return otherwise if self._best is None else self._best[2:]

    def state(self) -> dict[str, Any]:
        """What a checkpoint needs."""
        return {"history": self.history, "leader": self._leader, "best": self._best}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state` gave."""
        self.history, self._leader, self._best = state["history"], state["leader"], state["best"]
