"""What a full cache says of its teacher, so that a run need not load it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from potstill.cache.vault import Vault
from potstill.files import sha256, write_atomic
from potstill.measure import Latency, Measured
from potstill.models.preprocessing import Preprocessing

__all__ = ["KnownTeacher"]


@dataclass(frozen=True)
class KnownTeacher:
    """What a run asks of its teacher besides its answers to training samples.

    Attributes:
        metric: The task's metric on validation.
        test: Its answers to the test part, ``(N, ...)``.
        measured: What it costs.
        preprocessing: How it wants its images, where it takes images.
        parts: Fingerprints of the validation and the test part.
    """

    metric: float
    test: NDArray[np.float32]
    measured: Measured
    preprocessing: Preprocessing | None
    parts: str

    def save(self, vault: Vault) -> dict[str, Any]:
        """Write the answers beside the answers and give the rest as plain values for the manifest."""
        path = vault.folder / "teacher-test.npy"
        with write_atomic(path) as aside:
            np.save(aside, self.test)
        plain = dataclasses.asdict(self)
        return {**plain, "test": sha256(path)}

    @classmethod
    def load(cls, vault: Vault, parts: str) -> KnownTeacher | None:
        """What a full cache says, if it was asked about the same validation and test parts."""
        manifest = vault.manifest()
        if manifest is None:
            return None
        plain, path = dict(manifest["teacher"]), vault.folder / "teacher-test.npy"
        if plain["parts"] != parts or not path.is_file() or sha256(path) != plain["test"]:
            return None
        return cls(
            metric=plain["metric"],
            test=np.load(path),
            measured=_measured(plain["measured"]),
            preprocessing=_preprocessing(plain["preprocessing"]),
            parts=parts,
        )


def _measured(plain: Mapping[str, Any]) -> Measured:
    times = {int(batch): Latency(**time) for batch, time in plain["latency_ms"].items()}
    return Measured(**{**plain, "latency_ms": times})


def _preprocessing(plain: Mapping[str, Any] | None) -> Preprocessing | None:
    if plain is None:
        return None
    return Preprocessing(tuple(plain["mean"]), tuple(plain["std"]), plain["size"])
