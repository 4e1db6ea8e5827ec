"""Early exits of a run: what they could save before training, and after it thresholds, figures and proof."""

from potstill.early_exits.decide import EarlyExits, decide
from potstill.early_exits.parts import Parts, parts_of
from potstill.early_exits.prospect import prospect

__all__ = ["EarlyExits", "Parts", "decide", "parts_of", "prospect"]
