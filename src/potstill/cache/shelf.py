"""The caches of a recipe: one for each seed, as each seed has views of its own, and each set of layers."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from torch import nn

from potstill.cache.cached import Cached
from potstill.cache.settings import CacheConfig
from potstill.cache.vault import Identity, Vault

__all__ = ["Shelf"]

HOME = Path("runs/caches")


class Shelf:
    """Where the caches of a recipe stand.

    Args:
        config: The recipe's ``teacher.cache``.
        facts: What makes a cache another one, by name, without seed and layers.
        samples: Number of training samples.
        augmented: Whether views differ; if not, one view is stored for all epochs and seeds.

    Attributes:
        writing: Whether what is missing may be written: a plan or a rehearsal only looks.
        say: Told what a user should know.
    """

    def __init__(
        self, config: CacheConfig, facts: Mapping[str, str], *, samples: int, augmented: bool
    ) -> None:
        self.config = config if augmented else replace(config, views=1)
        self.facts, self.samples, self.augmented = dict(facts), samples, augmented
        self.say: Callable[[str], None] = print
        self._writing = False
        self._vaults: dict[Path, Vault] = {}

    @property
    def views(self) -> int:
        """After how many epochs views come again."""
        return self.config.views

    @property
    def writing(self) -> bool:
        """Whether what is missing may be written."""
        return self._writing

    @writing.setter
    def writing(self, value: bool) -> None:
        self._writing = value
        for vault in self._vaults.values():
            vault.writing = value

    @property
    def root(self) -> Path:
        """The folder of all."""
        if self.config.path is not None:
            return Path(self.config.path).expanduser()
        return HOME / Identity(self.facts).digest

    def vault(self, seed: int, paths: Sequence[str] = (), temperatures: Sequence[float] = ()) -> Vault:
        """The cache of a seed and of the layers at ``paths``; losses look at it at ``temperatures``.

        Raises:
            UserError: If its folder holds another's answers, or is damaged.
        """
        name = f"seed-{seed}" if self.augmented else "all-seeds"
        if paths:
            name += "-" + hashlib.sha256("\n".join(paths).encode()).hexdigest()[:8]
        folder = self.root / name
        if folder not in self._vaults or self._vaults[folder].asked_for != tuple(temperatures):
            facts = {**self.facts, "seed": str(seed) if self.augmented else "any", "layers": ", ".join(paths)}
            self._vaults[folder] = Vault(
                folder,
                Identity(facts),
                self.config,
                samples=self.samples,
                temperatures=temperatures,
                say=lambda line: self.say(line),
            )
            self._vaults[folder].writing = self._writing
        return self._vaults[folder]

    def teacher(self, live: Callable[[], nn.Module], seed: int, temperatures: Sequence[float]) -> Cached:
        """The teacher of a seed; ``live`` gives the network where it is needed."""
        return Cached(live, lambda paths: self.vault(seed, paths, temperatures))
