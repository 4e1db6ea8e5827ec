"""Who teaches whom. A scheme is a module that a loop, any loop, calls with a batch."""

from __future__ import annotations

from potstill.schemes.offline import Offline, StudentPart
from potstill.schemes.stages import Stage

__all__ = ["Offline", "Stage", "StudentPart"]
