"""What a run ran on: versions, processor, threads. Enough to read a figure rightly later."""

from __future__ import annotations

import os
import platform
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from potstill._version import __version__

__all__ = ["describe", "processor"]

LIBRARIES = ("torch", "torchvision", "timm", "numpy", "safetensors", "datasets", "onnx", "onnxruntime")


def processor() -> str:
    """Name of the processor, with the widest vector instructions that torch uses on it.

    >>> isinstance(processor(), str)
    True
    """
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    return f"{name} ({torch.backends.cpu.get_cpu_capability()})"


def _versions() -> dict[str, str]:
    found = {}
    for library in LIBRARIES:
        try:
            found[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            continue
    return found


def describe(device: torch.device, *, precision: str, world_size: int) -> dict[str, Any]:
    """The environment of a run as plain values for ``environment.json``."""
    return {
        "potstill": __version__,
        "python": platform.python_version(),
        "libraries": _versions(),
        "platform": platform.platform(),
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "precision": precision,
        "processes": world_size,
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
    }
