"""Where the student goes: a file that other runtimes read, checked against the trained network."""

from potstill.deploy.export import Exported, export_onnx

__all__ = ["Exported", "export_onnx"]
