"""A network with early exits as one ONNX file a segment and a manifest; run by ``exit_runtime``."""

from __future__ import annotations

import copy
import hashlib
import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from potstill._version import __version__
from potstill.deploy import exit_runtime
from potstill.deploy.early_exit import load_policy
from potstill.deploy.exit_runtime import MANIFEST, MANIFEST_FORMAT, OnnxEarlyExit, Policy
from potstill.deploy.export import SAMPLES, TOLERANCE, Exportable, _first_line, _quiet, require
from potstill.errors import UserError
from potstill.files import write_bytes, write_json
from potstill.models.exits import EXIT, WithExits
from potstill.models.preprocessing import Preprocessing
from potstill.models.segments import Segments, cut
from potstill.models.weights import fingerprint

__all__ = ["ExportedExits", "export_exits", "export_run_exits"]

BATCHES = (1, 7)


@dataclass(frozen=True)
class ExportedExits:
    """An exported and checked network with exits.

    Attributes:
        folder: Where it is.
        samples: Samples that it was checked on.
        largest_difference: Largest difference of any exit's logit from the network's, over the spread of
            its logits.
    """

    folder: Path
    samples: int
    largest_difference: float

    def describe(self) -> str:
        """One line for people."""
        return (
            f"{self.folder}: onnxruntime agrees with the trained network at every exit on {self.samples} "
            f"samples (largest relative difference {self.largest_difference:.1e})"
        )


def export_run_exits(loaded: Exportable, policy: Path, folder: Path) -> str:
    """Write the segments of a run's student with the thresholds that the run chose.

    Args:
        loaded: The run; its student has exits.
        policy: Its ``early_exit.json``.
        folder: Where to.

    Returns:
        One line for people: what was written and checked, or why the network cannot be cut.

    Raises:
        UserError: If the thresholds are gone or of another network, or as :func:`export_exits` does.
    """
    network = loaded.student
    assert isinstance(network, WithExits)
    chosen = load_policy(policy, network)
    given = loaded.samples(SAMPLES)
    images = given.float() if given.is_floating_point() else given.float() / 255
    reason = cut(network.model, network.paths, loaded.preprocessing.normalise(images[:2])).reason
    if reason:
        return f"the exits are not written, the network cannot be cut at them: {reason}"
    options: dict[str, Any] = {"preprocessing": loaded.preprocessing, "class_names": loaded.class_names}
    return export_exits(network, chosen, images, folder, **options).describe()


class _Stage(nn.Module):
    """One segment and its exit: what it needs goes in, logits and what the next needs come out."""

    def __init__(self, part: nn.Module, head: nn.Module | None, preprocessing: Preprocessing | None) -> None:
        super().__init__()
        self.part = part
        self.head = head
        self.preprocessing = preprocessing

    def forward(self, *needed: Tensor) -> tuple[Tensor, ...]:
        if self.preprocessing is not None:
            needed = (self.preprocessing.normalise(needed[0]),)
        output, *rest = self.part(*needed)
        return (output if self.head is None else self.head(output)[0], *rest)


def export_exits(
    network: WithExits,
    policy: Policy,
    images: Tensor,
    folder: Path,
    *,
    preprocessing: Preprocessing | None = None,
    class_names: Sequence[str] = (),
) -> ExportedExits:
    """Write a folder that runs with numpy and onnxruntime alone: segments, manifest and the run-time's code.

    The files of the segments are named by their content and the manifest, which names them with checksums,
    is written last: a run that is broken off leaves what stood there before. Before that, every exit's
    answers are compared with the network's at batch 1 and 7.

    Args:
        network: The classifier with its exits.
        policy: When a sample leaves, by default.
        images: Samples to check with, ``(N, ...)``: what the network takes or, with ``preprocessing``,
            floats in 0..1.
        folder: Where to.
        preprocessing: Put into the first segment.
        class_names: For the manifest.

    Raises:
        UserError: If a library is missing, the network cannot be cut or exported, or the check fails.
    """
    require()
    shipped = copy.deepcopy(network).cpu().eval()
    images = images.cpu()
    taken = images if preprocessing is None else preprocessing.normalise(images)
    segments = cut(shipped.model, shipped.paths, taken[:2])
    if segments.reason:
        raise UserError(
            "export", f"the network cannot be cut at its exits: {segments.reason}; export it without exits"
        )
    shape = ", ".join(map(str, images.shape[1:]))
    values = "normalised" if preprocessing is None else "in 0..1; normalisation is inside"
    manifest = {
        "format": MANIFEST_FORMAT,
        "potstill": __version__,
        "weights": fingerprint(shipped),
        "input": f"float32 (N, {shape}), {values}",
        "classes": list(class_names),
        "exits": [*shipped.paths, "output"],
        "policy": policy.to_json(),
    }
    with tempfile.TemporaryDirectory(prefix="potstill-") as temporary:
        aside = Path(temporary)
        files = _write_segments(shipped, segments, images, preprocessing, aside)
        write_json(aside / MANIFEST, {**manifest, "segments": files})
        difference = _check(aside, shipped, taken, images)
        _publish(aside, [file["file"] for file in files], folder)
    return ExportedExits(folder, len(images), difference)


def _publish(aside: Path, segments: Sequence[str], folder: Path) -> None:
    """Put the files in place, the manifest last, then drop segments that it does not name."""
    write_bytes(folder / "exit_runtime.py", Path(exit_runtime.__file__).read_bytes())
    for name in (*segments, MANIFEST):
        write_bytes(folder / name, (aside / name).read_bytes())
    for stale in folder.glob("segment*.onnx"):
        if stale.name not in segments:
            stale.unlink()


@torch.no_grad()
def _write_segments(
    network: WithExits,
    segments: Segments,
    images: Tensor,
    preprocessing: Preprocessing | None,
    folder: Path,
) -> list[dict[str, Any]]:
    files = []
    needed: tuple[Tensor, ...] = (images[:2] if len(images) > 1 else torch.cat([images, images]),)
    axes: tuple[int | None, ...] = (0,)
    for number, part in enumerate(segments.parts):
        last = number == len(segments.axes)
        stage = _Stage(
            part, None if last else network.exits[number], None if number else preprocessing
        ).eval()
        names = ["images"] if number == 0 else [f"needed_{place}" for place in range(len(needed))]
        following = () if last else segments.axes[number]
        outputs = ["logits", *(f"needed_{place}_out" for place in range(len(following)))]
        content = _onnx(stage, needed, axes, names, outputs)
        digest = hashlib.sha256(content).hexdigest()
        name = f"segment{number}-{digest[:12]}.onnx"
        write_bytes(folder / name, content)
        files.append({"file": name, "sha256": digest, "inputs": names, "axes": list(following)})
        _, *rest = stage(*needed)
        needed, axes = tuple(rest), following
    return files


def _onnx(
    stage: nn.Module,
    needed: tuple[Tensor, ...],
    axes: Sequence[int | None],
    inputs: Sequence[str],
    outputs: Sequence[str],
) -> bytes:
    import onnx

    batch = torch.export.Dim("batch")
    shapes = tuple({} if axis is None else {axis: batch} for axis in axes)
    with _quiet():
        try:
            program = torch.onnx.export(
                stage,
                needed,
                dynamo=True,
                input_names=list(inputs),
                output_names=list(outputs),
                dynamic_shapes=(shapes,),
                verbose=False,
            )
        except Exception as error:  # the exporter raises many kinds; all mean that this segment cannot go
            raise UserError(
                "export", f"torch cannot export a segment of the network: {_first_line(error)}"
            ) from error
    assert program is not None
    model = program.model_proto
    onnx.checker.check_model(model)
    content: bytes = model.SerializeToString()
    return content


@torch.no_grad()
def _check(folder: Path, network: WithExits, taken: Tensor, images: Tensor) -> float:
    """Largest difference of any exit's logits from the network's, over the spread of its logits."""
    signals = network(taken)
    expected = [*(signals.taps[EXIT + path] for path in network.paths), signals.output]
    largest = 0.0
    for number, logits in enumerate(expected):
        thresholds = [-math.inf if place == number else math.inf for place in range(len(network.paths))]
        runtime = OnnxEarlyExit(folder, Policy("probability", tuple(thresholds)))  # all leave at this exit
        spread = max(float(logits.max() - logits.min()), 1e-6)
        for size in BATCHES:
            batches = [images[start : start + size].numpy() for start in range(0, len(images), size)]
            found = np.concatenate([runtime(batch).logits for batch in batches])
            largest = max(largest, float(np.abs(found - logits.numpy()).max()) / spread)
        if not largest <= TOLERANCE:
            raise UserError(
                "export",
                f"onnxruntime disagrees with the trained network at exit {number}: largest relative "
                f"difference {largest:.1e} (at most {TOLERANCE:g})",
            )
    return largest
