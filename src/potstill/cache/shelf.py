"""The caches of a recipe: one for each seed, as each seed has views of its own, and each set of layers."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from potstill.batch import Inputs
from potstill.cache.cached import Cached
from potstill.cache.identity import Identity, sealed, unsealed
from potstill.cache.settings import CacheConfig
from potstill.cache.vault import Vault
from potstill.errors import UserError
from potstill.files import write_once
from potstill.matching.recording import LayerShape

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

    def vault(self, seed: int, layers: Sequence[str] = (), temperatures: Sequence[float] = ()) -> Vault:
        """The cache of a seed that holds ``layers`` too; losses look at it at ``temperatures``.

        Raises:
            UserError: If its folder holds another's answers, or is damaged.
        """
        name = self._name(seed)
        if layers:
            name += "-" + hashlib.sha256("\n".join(layers).encode()).hexdigest()[:8]
        folder = self.root / name
        if folder not in self._vaults or self._vaults[folder].asked_for != tuple(temperatures):
            identity = Identity({**self._facts(seed), "layers": ", ".join(layers)})
            self._vaults[folder] = self._opened(folder, identity, temperatures)
        return self._vaults[folder]

    def full(self, seed: int) -> Iterator[Vault]:
        """The caches of a seed that lack nothing, whatever layers they hold."""
        for header in sorted(self.root.glob(f"{self._name(seed)}*/header.json")):
            facts = unsealed(header)["identity"]
            if {**facts, "layers": ""} == {**self._facts(seed), "layers": ""}:
                vault = self._opened(header.parent, Identity(facts), ())
                if vault.manifest() is not None:
                    yield vault

    def _name(self, seed: int) -> str:
        return f"seed-{seed}" if self.augmented else "all-seeds"

    def _facts(self, seed: int) -> dict[str, str]:
        return {**self.facts, "seed": str(seed) if self.augmented else "any"}

    def _opened(self, folder: Path, identity: Identity, temperatures: Sequence[float]) -> Vault:
        vault = Vault(
            folder,
            identity,
            self.config,
            samples=self.samples,
            temperatures=temperatures,
            say=lambda line: self.say(line),
        )
        vault.writing = self._writing
        return vault

    def layers(self, inputs: Inputs, found: Callable[[], Sequence[LayerShape]]) -> Sequence[LayerShape]:
        """The teacher's layers for an example, kept so that a plan needs no teacher.

        Args:
            inputs: The example, ``(N, ...)``.
            found: Runs the teacher on it.

        Raises:
            UserError: If what is kept is damaged, or of another teacher.
        """
        path = self.root / "layers.json"
        tensors = inputs if isinstance(inputs, Mapping) else {"": inputs}
        shapes = {name: list(tensor.shape) for name, tensor in tensors.items()}
        facts = {**self.facts, "example": json.dumps(shapes)}
        if path.exists():
            kept = unsealed(path)
            if kept["identity"] == facts:
                return [LayerShape(**{**row, "shape": tuple(row["shape"])}) for row in kept["layers"]]
            return found()
        layers = found()
        if self._writing:
            rows = [dataclasses.asdict(layer) for layer in layers]
            with contextlib.suppress(UserError):  # a full disk is told of with the answers
                write_once(path, sealed({"identity": facts, "layers": rows}))
        return layers

    def teacher(self, live: Callable[[], nn.Module], seed: int, temperatures: Sequence[float]) -> Cached:
        """The teacher of a seed; ``live`` gives the network where it is needed."""
        return Cached(live, _Place(self, seed, tuple(temperatures)))


@dataclass(frozen=True)
class _Place:
    """What a shelf holds of one seed."""

    shelf: Shelf
    seed: int
    temperatures: tuple[float, ...]

    def vault(self, layers: Sequence[str]) -> Vault:
        return self.shelf.vault(self.seed, layers, self.temperatures)

    def layers(self, inputs: Inputs, found: Callable[[], Sequence[LayerShape]]) -> Sequence[LayerShape]:
        return self.shelf.layers(inputs, found)
