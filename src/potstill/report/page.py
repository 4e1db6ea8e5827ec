"""One run folder in, one HTML file out: no request leaves the page, and it reads nothing but the folder."""

from __future__ import annotations

from html import escape
from pathlib import Path

from potstill._version import __version__
from potstill.files import write_text
from potstill.report._details import dark_knowledge, matched, provenance, views
from potstill.report._detection import scenes
from potstill.report._exits import exits
from potstill.report._figures import calibration, classes, learning, trade_offs
from potstill.report._headline import arms_table, headline, set_up
from potstill.report._insides import insides
from potstill.report._language import benchmarks, divergences, generations
from potstill.report._material import Material, read, read_beside
from potstill.report._networks import networks
from potstill.report._pictures import pictures, sheets
from potstill.report._prune import rounds
from potstill.report._regions import precision_curves, regions
from potstill.report.style import SCRIPT, STYLE

__all__ = ["document", "render"]

# The page may run its own few lines and show its own images, and may not ask anybody for anything.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def render(run: Path, beside: Path | None = None) -> Path:
    """Draw ``report.html`` of a finished run.

    Args:
        run: The run folder, with ``recipe.yaml``, ``environment.json``, ``result.json`` and ``report.json``.
        beside: Another run, whose networks early exits are compared with.

    Returns:
        Path of the page.

    Raises:
        UserError: If a file is missing or cannot be read, or the page cannot be written.
    """
    path = run / "report.html"
    write_text(path, _page(read(run) if beside is None else read_beside(run, beside)))
    return path


def _page(material: Material) -> str:
    sections = (
        set_up(material),
        arms_table(material),
        pictures(material),
        sheets(material),
        networks(material),
        rounds(material),
        exits(material),
        learning(material),
        trade_offs(material),
        scenes(material),
        classes(material),
        precision_curves(material),
        regions(material),
        divergences(material),
        insides(material),
        generations(material),
        benchmarks(material),
        dark_knowledge(material),
        calibration(material),
        views(material),
        matched(material),
        provenance(material),
    )
    task = escape(str(material.result["task"]).replace("_", " "))
    return document(material.content.title, f"report, {task}", f"{headline(material)}{''.join(sections)}")


def document(title: str, kind: str, main: str) -> str:
    """A whole page that asks nobody for anything.

    Args:
        title: Its title, as text.
        kind: What stands beside the name of Potstill at the top, as HTML.
        main: Its body, as HTML.
    """
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{escape(title)} · Potstill</title><style>{STYLE}</style></head><body>"
        f'<div class="top"><span><b>Potstill</b> {kind}</span>'
        '<button type="button" id="theme" hidden>Dark</button></div>'
        f"<main>{main}</main>"
        f"<footer>Made by Potstill {escape(__version__)}. Everything on this page is in this file.</footer>"
        f"<script>{SCRIPT}</script></body></html>\n"
    )
