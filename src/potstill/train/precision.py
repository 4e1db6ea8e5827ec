"""What a forward pass computes in: decided by what the processor can do, not by hope.

With instructions for it (AMX or AVX512-BF16) bf16 halves the time of a step on most processors, but not on
all: some run AVX512-BF16 at half the rate of float32, so a product is timed in both. Without them it is
10 to 30 times slower.
"""

from __future__ import annotations

import functools
import time
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from potstill.errors import UserError

__all__ = ["Precision", "choose"]


@dataclass(frozen=True)
class Precision:
    """The choice, and why.

    Attributes:
        name: ``float32`` or ``bf16``; what a resolved recipe holds.
        channels_last: Lay images and convolutions out with channels last.
        reason: One sentence.
    """

    name: Literal["float32", "bf16"]
    channels_last: bool
    reason: str

    def autocast(self, device: torch.device) -> torch.autocast:
        """The context for forward passes; losses leave it and compute in float32."""
        return torch.autocast(device.type, torch.bfloat16, enabled=self.name == "bf16")


def _has_bf16(device: torch.device) -> tuple[bool, str]:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False), torch.cuda.get_device_name(device)
    found = [
        name
        for name, attribute in (
            ("AMX", "_is_amx_tile_supported"),
            ("AVX512-BF16", "_is_avx512_bf16_supported"),
        )
        if getattr(torch.cpu, attribute, bool)()
    ]
    if not found:
        return False, "the processor has no bf16 instructions"
    ratio = _speed_of_bf16()
    return ratio > 1, f"the processor has {found[0]}, {ratio:.1f} times as quick as float32"


@functools.cache
def _speed_of_bf16(tries: int = 5) -> float:
    """How many products in bf16 this processor computes in the time of one in float32.

    The best of a few tries in turns, after one to warm up: 30 ms in all, once in a process.
    """
    left, right = torch.ones(256, 512), torch.ones(512, 1024)
    best: dict[torch.dtype, float] = {}
    for _ in range(tries + 1):
        for kind in (torch.float32, torch.bfloat16):
            one, other = left.to(kind), right.to(kind)
            began = time.perf_counter()
            torch.mm(one, other)
            took = time.perf_counter() - began
            best[kind] = min(took, best.get(kind, took))
    return best[torch.float32] / best[torch.bfloat16]


def choose(
    precision: Literal["auto", "float32", "bf16"], device: torch.device, model: nn.Module
) -> Precision:
    """Decide the precision of a run.

    Args:
        precision: ``auto`` or the user's word.
        device: Where the run computes.
        model: The student; networks with 2-d convolutions get channels last.

    Raises:
        UserError: If bf16 is asked for on a device that lacks it altogether.

    Example:
        >>> choose("float32", torch.device("cpu"), nn.Linear(2, 2)).name
        'float32'
    """
    convolutions = any(isinstance(module, nn.Conv2d) for module in model.modules())
    able, why = _has_bf16(device)
    if precision == "bf16" and device.type == "cuda" and not able:
        raise UserError("train.precision", f"expected a device with bf16, got {why}")
    name: Literal["float32", "bf16"] = (
        "bf16" if precision == "bf16" or (precision == "auto" and able) else "float32"
    )
    said = f"asked for; {why}" if precision != "auto" else why
    layout = ", channels last" if convolutions else ""
    return Precision(name, convolutions, f"{name}{layout} ({said})")
