"""Potstill distils big neural networks into small ones that you can ship.

>>> import potstill
>>> potstill.__version__.count(".")
2
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from potstill._version import __version__

if TYPE_CHECKING:
    from potstill.api import distill
    from potstill.batch import Batch, Share, Signals, Step
    from potstill.errors import UserError
    from potstill.matching.objective import Objective
    from potstill.matching.taps import Tapped
    from potstill.models.preprocessing import Preprocessing
    from potstill.run import Result
    from potstill.schemes import Offline
    from potstill.teachers import Ensemble, Frozen

__all__ = [
    "Batch",
    "Ensemble",
    "Frozen",
    "Objective",
    "Offline",
    "Preprocessing",
    "Result",
    "Share",
    "Signals",
    "Step",
    "Tapped",
    "UserError",
    "__version__",
    "distill",
]

_HOMES = {
    "Batch": "batch",
    "Ensemble": "teachers",
    "Frozen": "teachers",
    "Objective": "matching.objective",
    "Offline": "schemes",
    "Preprocessing": "models.preprocessing",
    "Result": "run",
    "Share": "batch",
    "Signals": "batch",
    "Step": "batch",
    "Tapped": "matching.taps",
    "UserError": "errors",
    "distill": "api",
}


def __getattr__(name: str) -> Any:
    """Load a public name when it is first used: ``import potstill`` stays quick."""
    if name in _HOMES:
        return getattr(import_module(f"potstill.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'potstill' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
