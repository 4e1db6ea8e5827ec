"""The report: one HTML file that a person would show to a colleague."""

from potstill.report.comparison import render_comparison
from potstill.report.content import ReportContent
from potstill.report.importance import render_importance
from potstill.report.page import render

__all__ = ["ReportContent", "render", "render_comparison", "render_importance"]
