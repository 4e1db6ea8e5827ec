"""A generator as an ONNX file, checked pixel by pixel on real images before it gets its name."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from potstill._version import __version__
from potstill.deploy.export import BATCHES, Exported, require, write_model
from potstill.errors import UserError
from potstill.files import write_atomic
from potstill.matching.taps import first_tensor

__all__ = ["GeneratorRun", "export_generator"]

SAMPLES = 8
TOLERANCE = 0.5 / 255
"""Largest difference of any value from torch's, of images in 0..1: half a step of eight bits."""
SMALLER = 16
"""Sides of the second size that is tried are multiples of this."""
WORDS = "same images"


class GeneratorRun(Protocol):
    """What is exported: a loaded run, or anything with these."""

    @property
    def student(self) -> nn.Module:
        """The trained generator."""

    def generator_inputs(self, count: int) -> Tensor:
        """What it is given on the test part, ``(count, ...)``: images in 0..1."""


class _InRange(nn.Module):
    """The generator; its answer as the run itself takes it, in 0..1."""

    def __init__(self, generator: nn.Module) -> None:
        super().__init__()
        self.generator = generator

    def forward(self, images: Tensor) -> Tensor:
        answer = first_tensor(self.generator(images))
        assert answer is not None, "a generator gives images"
        return answer.clamp(0.0, 1.0)


def export_generator(loaded: GeneratorRun, path: Path) -> Exported:
    """Write an ONNX file with a dynamic batch, and dynamic sides where the network takes others.

    The graph takes float32 ``images`` in 0..1, ``(N, C, H, W)``, or normal ``noise``, ``(N, k)``, and gives
    ``answer``, images in 0..1. Before the file gets its name, onnxruntime runs it at batch 1 and 7, and at a
    second size where there is one: no value of any pixel may lie further than half a step of eight bits from
    torch's.

    Args:
        loaded: The student and its inputs.
        path: Where to.

    Raises:
        UserError: If a library is missing, the network cannot be exported, or the check fails; then no
            file is left.
    """
    require()
    images = loaded.generator_inputs(SAMPLES)
    student = copy.deepcopy(loaded.student).eval()
    network = _InRange(student.to("cpu", memory_format=torch.contiguous_format)).eval()  # type: ignore[call-overload]
    sizes = [images, *_smaller(network, images)]
    name, values = ("images", "values in 0..1") if images.dim() == 4 else ("noise", "normal numbers")
    lengths = [str(length) for length in images.shape[1:]] if len(sizes) == 1 else None
    shape = ", ".join(lengths or [str(images.shape[1]), "height", "width"])
    metadata = {
        "potstill": __version__,
        "input": f"{name}: float32 (N, {shape}), {values}",
        "output": "answer: float32, values in 0..1",
    }
    dynamic = (0,) if len(sizes) == 1 else (0, 2, 3)
    with write_atomic(path) as aside:
        write_model(network, {name: images}, aside, metadata, output="answer", dynamic=dynamic)
        largest = max(_check(network, name, each, aside) for each in sizes)
    return Exported(path, len(images), largest, WORDS)


@torch.no_grad()
def _smaller(network: nn.Module, images: Tensor) -> list[Tensor]:
    """The same images, cut to half their sides, where the network takes them."""
    if images.dim() != 4:
        return []
    sides = [length // 2 // SMALLER * SMALLER for length in images.shape[2:]]
    cut = images[:2, :, : sides[0], : sides[1]]
    try:
        network(cut)
    except (RuntimeError, ValueError):
        return []
    return [cut] if min(sides) else []


def _check(network: nn.Module, name: str, images: Tensor, path: Path) -> float:
    """Largest difference of any value of the file's answers from torch's, over all batch sizes."""
    import onnxruntime

    session: Any = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    with torch.no_grad():
        expected: NDArray[np.float32] = network(images).numpy()
    largest = 0.0
    for size in BATCHES:
        batches = [images[start : start + size].numpy() for start in range(0, len(images), size)]
        found = np.concatenate([session.run(["answer"], {name: batch})[0] for batch in batches])
        difference = float(np.abs(found - expected).max()) if found.shape == expected.shape else np.inf
        largest = max(largest, difference)
        if not largest <= TOLERANCE:
            raise UserError(
                "export",
                f"onnxruntime disagrees with the trained student at batch {size}: images {found.shape} "
                f"differ from {expected.shape} by up to {largest:.1e} of 1 (at most {TOLERANCE:.1e})",
            )
    return largest
