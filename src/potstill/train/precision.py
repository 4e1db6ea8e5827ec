"""What a forward pass computes in: decided by what the processor can do, not by hope.

bf16 halves the time of a step where the processor has instructions for it (AMX or AVX512-BF16), and
makes it 10 to 30 times slower where it has not.
"""

from __future__ import annotations

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
    return bool(found), f"the processor has {found[0] if found else 'no bf16 instructions'}"


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
