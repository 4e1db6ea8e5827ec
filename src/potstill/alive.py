"""The most bytes that tensors made during a stretch of work took at once, counted exactly."""

from __future__ import annotations

import weakref
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["Alive"]


class Alive(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of the storages that were made inside it and are still there.

    A process's own peak says little where freed memory is kept for the next use. What a kernel takes and
    gives back inside one operation is not seen.

    Attributes:
        peak: Most bytes at once so far.

    >>> import torch
    >>> with Alive() as alive:
    ...     kept = torch.zeros(100)
    ...     _ = [float(kept.add(1).sum()) for _ in range(3)]
    >>> alive.peak  # what is kept, the sum beside it, and the sum's result
    804
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = 0
        self._now = 0
        self._storages: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        given = {
            each.untyped_storage()._cdata for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)
        }
        for each in tree_leaves(output):
            if isinstance(each, Tensor) and each.untyped_storage()._cdata not in given:
                self._see(each.untyped_storage())
        return output

    def _see(self, storage: Any) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._storages:
            return

        def gone(_: Any) -> None:
            del self._storages[key]
            self._now -= size

        self._storages[key] = weakref.ref(storage, gone)
        self._now += size
        self.peak = max(self.peak, self._now)
