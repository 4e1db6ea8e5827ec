"""The student as an ONNX file, checked on real samples before it gets its name."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from potstill._version import __version__
from potstill.errors import UserError
from potstill.files import write_atomic
from potstill.models.exits import WithExits
from potstill.models.preprocessing import Preprocessing

__all__ = [
    "BATCHES",
    "SAMPLES",
    "Exportable",
    "Exported",
    "check_classes",
    "export_onnx",
    "in_batches",
    "require",
    "write_model",
]

SAMPLES = 64
BATCHES = (1, 7)
TOLERANCE = 1e-3
CLASSES = "same classes"
"""In what logits agree; their difference is told over their spread."""


class Exportable(Protocol):
    """What is exported: a loaded run, or anything with these."""

    @property
    def student(self) -> nn.Module:
        """The trained network."""

    @property
    def preprocessing(self) -> Preprocessing:
        """How it wants its images."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of its classes."""

    def samples(self, count: int) -> Tensor:
        """Real images as the data gives them, ``(n, C, H, W)``."""


@dataclass(frozen=True)
class Exported:
    """An exported and checked file.

    Attributes:
        path: The file.
        samples: Real samples it was checked on.
        largest_difference: Largest difference of any logit from the trained network's, over the spread of
            its logits; of images in 0..1, of any value.
        agree: In what they agree.
    """

    path: Path
    samples: int
    largest_difference: float
    agree: str = CLASSES

    def describe(self) -> str:
        """One line for people."""
        relative = "relative " if self.agree == CLASSES else ""
        return (
            f"{self.path}: {self.path.stat().st_size:,} bytes; onnxruntime agrees with the trained student "
            f"on {self.samples} test samples ({self.agree}, largest {relative}difference "
            f"{self.largest_difference:.1e})"
        )


class _WithPreprocessing(nn.Module):
    """The network with its normalisation: images in 0..1 go in, logits come out."""

    mean: Tensor
    std: Tensor

    def __init__(self, student: nn.Module, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.student = student
        self.size = preprocessing.size
        self.register_buffer("mean", torch.tensor(preprocessing.mean)[:, None, None])
        self.register_buffer("std", torch.tensor(preprocessing.std)[:, None, None])

    def forward(self, images: Tensor) -> Tensor:
        if self.size is not None:
            size = (self.size, self.size)
            images = nn.functional.interpolate(images, size=size, mode="bilinear", antialias=True)
        return _first(self.student((images - self.mean) / self.std))


def _first(output: Any) -> Tensor:
    logits: Tensor = output[0] if isinstance(output, tuple | list) else output
    return logits


def export_onnx(loaded: Exportable, path: Path) -> Exported:
    """Write an ONNX file with a dynamic batch; its metadata states preprocessing and classes.

    Of a student with early exits the whole network is written, without its exits (see ``export_exits``).

    The graph takes float32 images in 0..1 at the data's size, ``images`` ``(N, C, H, W)``, and gives
    ``logits`` ``(N, classes)``; normalisation and resize are inside. Before the file gets its name,
    onnxruntime runs it at batch 1 and 7 on real samples: every class must be the trained network's as the
    run itself prepares its images, every logit within 1e-3 of the spread of the logits.

    Args:
        loaded: The student and what belongs to it.
        path: Where to.

    Raises:
        UserError: If a library is missing, the network cannot be exported, or the check fails; then no
            file is left.
    """
    require()
    given = loaded.samples(SAMPLES)
    images = given.float() if given.is_floating_point() else given.float() / 255
    whole = loaded.student.model if isinstance(loaded.student, WithExits) else loaded.student
    student = copy.deepcopy(whole).eval()
    student = student.to("cpu", memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    with torch.no_grad():  # what the run itself answers to these samples
        expected = _first(student(loaded.preprocessing.normalise(given))).numpy()
    network = _WithPreprocessing(student, loaded.preprocessing).eval()
    with write_atomic(path) as aside:
        write_model(network, images, aside, _metadata(loaded, images))
        pixels = images.numpy()
        batches = {
            size: [{"images": pixels[rows]} for rows in in_batches(len(pixels), size)] for size in BATCHES
        }
        difference = check_classes(expected, batches, aside)
    return Exported(path, len(images), difference)


def in_batches(count: int, size: int) -> list[slice]:
    """Every one of ``count`` samples in batches of ``size``, the last of which may be short.

    >>> in_batches(3, 2)
    [slice(0, 2, None), slice(2, 4, None)]
    """
    return [slice(start, start + size) for start in range(0, count, size)]


def require() -> None:
    """Refuse where a library is missing.

    Raises:
        UserError: With what to install.
    """
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError("export", f"{error.name} is not installed: pip install 'potstill[export]'") from error
    del onnx, onnxruntime


def _metadata(loaded: Exportable, images: Tensor) -> dict[str, str]:
    preprocessing = loaded.preprocessing
    shape = ", ".join(map(str, images.shape[1:]))
    plain = float(images.min()) >= 0 and float(images.max()) <= 1
    values = "RGB or grey values in 0..1" if plain else "float values as the data set gave them in training"
    return {
        "potstill": __version__,
        "input": f"images: float32 (N, {shape}), {values}",
        "preprocessing": f"inside the graph: {preprocessing.describe()}",
        "mean": json.dumps(preprocessing.mean),
        "std": json.dumps(preprocessing.std),
        "classes": json.dumps(loaded.class_names, ensure_ascii=False),
    }


def write_model(
    network: nn.Module,
    inputs: Tensor | Mapping[str, Tensor],
    path: Path,
    metadata: dict[str, str],
    *,
    output: str = "logits",
    dynamic: Sequence[int] = (0,),
) -> None:
    """Write an ONNX file, unchecked.

    Args:
        network: Takes one tensor, or tensors in this order, and gives one.
        inputs: At least two of its inputs, called ``images`` in the graph, or inputs by name.
        path: Where to.
        metadata: What the file tells of itself.
        output: Name of what it gives.
        dynamic: Dimensions of each input that may be others; the first is the batch.

    Raises:
        UserError: If torch cannot export it.
    """
    import onnx

    shapes: dict[int, Any] = dict.fromkeys(dynamic, torch.export.Dim.AUTO)
    shapes[0] = torch.export.Dim("batch")
    named = inputs if isinstance(inputs, Mapping) else {"images": inputs}
    with _quiet():
        try:
            program = torch.onnx.export(
                network,
                tuple(tensor[:2] for tensor in named.values()),
                dynamo=True,
                input_names=list(named),
                output_names=[output],
                dynamic_shapes=(shapes,) * len(named),
                verbose=False,
            )
        except Exception as error:  # the exporter raises many kinds; all mean that this network cannot go
            raise UserError("export", f"torch cannot export the student: {_first_line(error)}") from error
    assert program is not None
    model = program.model_proto
    onnx.helper.set_model_props(model, metadata)
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())


def _first_line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter's notes on its own workings are nobody's business."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def check_classes(
    expected: NDArray[Any], batches: Mapping[int, Sequence[Mapping[str, NDArray[Any]]]], path: Path
) -> float:
    """Largest difference of a file's logits, over the spread of those expected.

    Args:
        expected: Logits of the trained network, ``(N, classes)``.
        batches: By their size: batches of the same N samples, in order, as the graph takes them.
        path: The file.

    Raises:
        UserError: If a class is another, or a logit too far off.
    """
    import onnxruntime

    session: Any = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    spread = max(float(expected.max() - expected.min()), 1e-6)
    largest = 0.0
    for size, parts in batches.items():
        found = np.concatenate([session.run(["logits"], dict(part))[0] for part in parts])
        largest = max(largest, float(np.abs(found - expected).max()) / spread)
        wrong = int((found.argmax(axis=1) != expected.argmax(axis=1)).sum())
        if not largest <= TOLERANCE or wrong:
            raise UserError(
                "export",
                f"onnxruntime disagrees with the trained student at batch {size}: {wrong} of {len(found)} "
                f"classes, largest relative difference {largest:.1e} (at most {TOLERANCE:g})",
            )
    return largest
