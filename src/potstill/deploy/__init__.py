"""Where the student goes: a file that other runtimes read, checked against the trained network."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from potstill.deploy.early_exit import EarlyExit
    from potstill.deploy.exit_runtime import OnnxEarlyExit, Policy
    from potstill.deploy.export import Exported, export_onnx
    from potstill.deploy.guarantee import Choice, choose
    from potstill.deploy.segments_export import ExportedExits, export_exits

__all__ = [
    "Choice",
    "EarlyExit",
    "Exported",
    "ExportedExits",
    "OnnxEarlyExit",
    "Policy",
    "choose",
    "export_exits",
    "export_onnx",
]

_HOMES = {
    "Choice": "guarantee",
    "EarlyExit": "early_exit",
    "Exported": "export",
    "ExportedExits": "segments_export",
    "OnnxEarlyExit": "exit_runtime",
    "Policy": "exit_runtime",
    "choose": "guarantee",
    "export_exits": "segments_export",
    "export_onnx": "export",
}


def __getattr__(name: str) -> Any:
    """Load a public name when it is first used: the run-time of exported files needs no torch."""
    if name in _HOMES:
        return getattr(import_module(f"potstill.deploy.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'potstill.deploy' has no attribute {name!r}")
