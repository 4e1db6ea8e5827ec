"""Methods x seeds in one command: every method against the same control, and how far to trust the order."""

from potstill.compare.lineup import line_up
from potstill.compare.standings import Comparison
from potstill.compare.tournament import compare_methods
from potstill.compare.variations import compare_variations

__all__ = ["Comparison", "compare_methods", "compare_variations", "line_up"]
