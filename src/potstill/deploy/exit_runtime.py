"""Run an exported network with early exits: numpy and onnxruntime only, this file alone is enough.

    runtime = OnnxEarlyExit("exported")
    answer = runtime(images)                 # (N, C, H, W) float32
    answer.logits, answer.exits              # (N, classes), (N,)

Segment after segment is computed; samples that leave are taken out of the batch, the rest goes on. Which
leave is for a :class:`Policy` to say, from the answers alone.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["KINDS", "Answer", "Judge", "OnnxEarlyExit", "Policy", "read_policy"]

Array = NDArray[Any]
KINDS = ("probability", "entropy", "margin", "patience")
MANIFEST = "manifest.json"
MANIFEST_FORMAT = "potstill-early-exit-1"
POLICY_FORMAT = "potstill-exit-policy-1"


@dataclass(frozen=True)
class Policy:
    """When a sample leaves: at the first exit whose score reaches that exit's threshold.

    Scores: ``probability`` is the largest probability, ``margin`` the distance of the two largest,
    ``entropy`` 1 minus the entropy over the logarithm of the number of classes; ``patience`` is the number of
    exits in a row, this one included, that say the same class.

    Args:
        kind: What the score is.
        thresholds: One for each exit but the last; ``inf`` where nobody leaves.
        temperatures: What the logits of each exit, the last included, are divided by; all 1 where empty.

    Raises:
        ValueError: If there is no such kind, or thresholds and temperatures do not fit.

    >>> policy = Policy("margin", (0.9, 0.5))
    >>> Policy.from_json(policy.to_json()) == policy
    True
    """

    kind: str
    thresholds: tuple[float, ...]
    temperatures: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"policy: expected one of {', '.join(KINDS)}, got {self.kind!r}")
        if not self.temperatures:
            object.__setattr__(self, "temperatures", (1.0,) * (len(self.thresholds) + 1))
        if len(self.temperatures) != len(self.thresholds) + 1:
            raise ValueError(
                f"policy: expected a temperature for each of {len(self.thresholds) + 1} exits, the last "
                f"included, got {len(self.temperatures)}"
            )
        if any(math.isnan(value) for value in self.thresholds):
            raise ValueError(f"policy: expected thresholds that are numbers, got {self.thresholds}")
        if not all(0 < value < math.inf for value in self.temperatures):
            raise ValueError(f"policy: expected temperatures above 0, got {self.temperatures}")

    def asks(self, number: int) -> bool:
        """Whether exit ``number`` has a say: where nobody can leave, it need not be computed.

        >>> [Policy("margin", (math.inf, 0.5)).asks(number) for number in range(3)]
        [False, True, True]
        """
        last = number == len(self.thresholds)
        return last or self.kind == "patience" or self.thresholds[number] < math.inf

    def to_json(self) -> dict[str, Any]:
        """As plain values; ``null`` where nobody leaves."""
        thresholds = [None if value == math.inf else value for value in self.thresholds]
        return {"kind": self.kind, "thresholds": thresholds, "temperatures": list(self.temperatures)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Policy:
        """What :meth:`to_json` gave.

        Raises:
            ValueError: If it is something else.
        """
        try:
            thresholds = tuple(math.inf if each is None else float(each) for each in value["thresholds"])
            kind, temperatures = str(value["kind"]), tuple(map(float, value["temperatures"]))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"policy: expected a kind, thresholds and temperatures, got {value!r:.80}"
            ) from error
        return cls(kind, thresholds, temperatures)


class Judge:
    """Scores a batch at one exit after the other; it sees answers, never a label.

    Args:
        policy: What the score is.

    >>> judge = Judge(Policy("probability", (0.9,)))
    >>> judge.score(0, np.array([[0.0, 0.0], [9.0, 0.0]])).round(2).tolist()
    [0.5, 1.0]
    """

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self._classes: Array | None = None
        self._agreed: Array = np.zeros(0)

    def score(self, number: int, logits: Array) -> Array:
        """How sure exit ``number`` is of each sample.

        Args:
            number: Which exit, from 0.
            logits: Its answers, ``(N, classes)``, of the samples still there.

        Returns:
            ``(N,)``, greater where surer.
        """
        if self.policy.kind == "patience":
            return self._patience(logits)
        scaled = logits.astype(np.float64) / self.policy.temperatures[number]
        scaled -= scaled.max(axis=1, keepdims=True)
        exponentials = np.exp(scaled)
        totals = exponentials.sum(axis=1, keepdims=True)
        if self.policy.kind == "probability":
            return 1 / totals[:, 0]  # type: ignore[no-any-return]
        probabilities = exponentials / totals
        if self.policy.kind == "margin":
            two = np.partition(probabilities, -2, axis=1)[:, -2:]
            return two[:, 1] - two[:, 0]
        entropy = -(probabilities * (scaled - np.log(totals))).sum(axis=1)
        return 1 - entropy / math.log(logits.shape[1])  # type: ignore[no-any-return]

    def _patience(self, logits: Array) -> Array:
        classes = logits.argmax(axis=1)
        before = np.full(len(classes), -1) if self._classes is None else self._classes
        agreed = np.zeros(len(classes)) if self._classes is None else self._agreed
        self._classes, self._agreed = classes, np.where(classes == before, agreed + 1, 1.0)
        return self._agreed

    def leaving(self, number: int, logits: Array) -> NDArray[np.bool_]:
        """Which samples leave at exit ``number``; at the last all do.

        Args:
            number: Which exit, from 0.
            logits: Its answers, ``(N, classes)``, of the samples still there.

        Returns:
            ``(N,)``; from here on only the others are expected.
        """
        if number == len(self.policy.thresholds):
            return np.ones(len(logits), dtype=bool)
        leaving: NDArray[np.bool_] = self.score(number, logits) >= self.policy.thresholds[number]
        if self._classes is not None:
            self._classes, self._agreed = self._classes[~leaving], self._agreed[~leaving]
        return leaving


@dataclass(frozen=True)
class Answer:
    """Answers in the order of the inputs.

    Attributes:
        logits: ``(N, classes)``, of the exit that each sample took.
        exits: ``(N,)``, the number of that exit, from 0; the last is the whole network.
    """

    logits: Array
    exits: NDArray[np.int64]


def read_policy(path: Path, weights: str) -> Policy:
    """A policy from a file, refused where it was chosen for another network.

    Args:
        path: What :func:`potstill.deploy.early_exit.save_policy` wrote.
        weights: Fingerprint of the network's weights.

    Raises:
        ValueError: If there is no such file, it is damaged, or of another network.
    """
    content = _read(path, POLICY_FORMAT, "weights", "policy")
    if content["weights"] != weights:
        raise ValueError(
            f"{path}: these thresholds were chosen for another network (weights "
            f"{str(content['weights'])[:12]}, expected {weights[:12]}); choose them anew for this one"
        )
    try:
        return Policy.from_json(content["policy"])
    except ValueError as error:
        raise ValueError(f"{path}: damaged: {error}") from error


def _read(path: Path, form: str, *keys: str) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: damaged: {error}") from error
    found = content.get("format") if isinstance(content, dict) else None
    if found != form:
        raise ValueError(f"{path}: expected a file of the format {form}, got {found}")
    missing = [key for key in keys if key not in content]
    if missing:
        raise ValueError(f"{path}: damaged: {', '.join(missing)} missing")
    return content  # type: ignore[no-any-return]


@dataclass(frozen=True)
class _Segment:
    """One file: its session, the names of what goes in and comes out, and where samples are in the latter."""

    session: Any
    inputs: list[str]
    outputs: list[str]
    axes: list[int | None]


class OnnxEarlyExit:
    """An exported network with early exits.

    Args:
        folder: What :func:`potstill.deploy.segments_export.export_exits` wrote.
        policy: A policy, or a file with one; the exported one by default.
        threads: Threads of onnxruntime; as many as there are cores by default.

    Attributes:
        exits: Names of the exits, in order.
        class_names: Names of the classes.

    Raises:
        ValueError: If a file is missing, damaged, or not of this network.
    """

    def __init__(
        self, folder: str | Path, policy: Policy | str | Path | None = None, threads: int | None = None
    ) -> None:
        folder = Path(folder)
        keys = ("weights", "policy", "exits", "classes", "segments")
        manifest = _read(folder / MANIFEST, MANIFEST_FORMAT, *keys)
        if isinstance(policy, str | Path):
            policy = read_policy(Path(policy), manifest["weights"])
        self.policy = policy or Policy.from_json(manifest["policy"])
        self.exits: tuple[str, ...] = tuple(manifest["exits"])
        self.class_names: tuple[str, ...] = tuple(manifest["classes"])
        if len(self.policy.temperatures) != len(self.exits):
            raise ValueError(
                f"policy: expected one for {len(self.exits)} exits, got {len(self.policy.temperatures)}"
            )
        self._segments = [_open(folder, segment, threads) for segment in manifest["segments"]]

    def __call__(self, images: Array) -> Answer:
        """Answer to a batch of any size.

        Args:
            images: ``(N, C, H, W)`` float32, as the manifest's ``input`` says.

        Returns:
            Logits and exits in the order of the images.
        """
        judge = Judge(self.policy)
        left: list[tuple[Array, int, Array]] = []
        rows: Array | None = None  # of the samples still there, once some have left
        needed: Sequence[Array] = (images,)
        for number, segment in enumerate(self._segments):
            given = dict(zip(segment.inputs, needed, strict=True))
            if not self.policy.asks(number):
                needed = segment.session.run(segment.outputs[1:], given)
                continue
            logits, *needed = segment.session.run(segment.outputs, given)
            leaving = judge.leaving(number, logits)
            if leaving.all():
                if rows is None:
                    return Answer(logits, np.full(len(images), number, np.int64))
                left.append((rows, number, logits))
                break
            if leaving.any():
                rows = np.arange(len(images)) if rows is None else rows
                left.append((rows[leaving], number, logits[leaving]))
                rows = rows[~leaving]
                needed = [
                    _kept(values, axis, ~leaving) for values, axis in zip(needed, segment.axes, strict=True)
                ]
        result = np.empty((len(images), logits.shape[1]), logits.dtype)
        exits = np.empty(len(images), np.int64)
        for places, number, logits in left:
            result[places], exits[places] = logits, number
        return Answer(result, exits)


def _kept(values: Array, axis: int | None, keep: NDArray[np.bool_]) -> Array:
    return values if axis is None else np.compress(keep, values, axis=axis)


def _open(folder: Path, segment: Mapping[str, Any], threads: int | None) -> _Segment:
    import onnxruntime

    path = folder / segment["file"]
    if not path.is_file():
        raise ValueError(f"{path}: no such file, though {MANIFEST} names it")
    if hashlib.sha256(path.read_bytes()).hexdigest() != segment["sha256"]:
        raise ValueError(f"{path}: not the file that {MANIFEST} names (its checksum differs)")
    options = onnxruntime.SessionOptions()
    if threads is not None:
        options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    outputs = [output.name for output in session.get_outputs()]
    return _Segment(session, list(segment["inputs"]), outputs, list(segment["axes"]))
