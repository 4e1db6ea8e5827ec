"""The report: one HTML file that a person would show to a colleague."""

from potstill.report.content import ReportContent

__all__ = ["ReportContent"]
