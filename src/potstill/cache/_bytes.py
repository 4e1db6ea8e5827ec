"""Numbers and places as bytes, lowest byte first: what codes share."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["as_bytes", "as_values", "place_bytes", "places_as_bytes", "places_from_bytes"]


def as_bytes(values: Tensor) -> Tensor:
    """The last dimension's memory as uint8."""
    return values.contiguous().view(torch.uint8)


def as_values(codes: Tensor, dtype: torch.dtype) -> Tensor:
    """Bytes as numbers of a type."""
    return codes.clone(memory_format=torch.contiguous_format).view(
        dtype
    )  # a slice may begin at an odd address


def place_bytes(size: int) -> int:
    """Bytes that the number of an entry takes: 1 up to 256 entries, 2 up to 65,536, then 3."""
    return 1 if size <= 1 << 8 else 2 if size <= 1 << 16 else 3


def places_as_bytes(places: Tensor, size: int) -> Tensor:
    """Places ``(..., K)`` of entries of ``size`` as bytes ``(..., K * place_bytes(size))``."""
    return as_bytes(places.to(torch.int64).unsqueeze(-1))[..., : place_bytes(size)].flatten(-2)


def places_from_bytes(codes: Tensor, size: int) -> Tensor:
    """What :func:`places_as_bytes` wrote, int64.

    >>> places_from_bytes(places_as_bytes(torch.tensor([[3, 49151]]), 49152), 49152)
    tensor([[    3, 49151]])
    """
    wide = place_bytes(size)
    places = codes.reshape(*codes.shape[:-1], -1, wide).long()
    return (places << (8 * torch.arange(wide, device=codes.device))).sum(dim=-1)
