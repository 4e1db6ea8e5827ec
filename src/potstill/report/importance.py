"""The page of importance: loss against the share removed along each axis, and a heat map of each axis."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from potstill.files import read_json, write_text
from potstill.report._axes import AXES
from potstill.report._material import section
from potstill.report.charts import Band, curves
from potstill.report.page import document

__all__ = ["render_importance"]

CELL, ROW, NAMES = 26, 18, 170
COLOURS = ("student", "control", "teacher", "other")


def render_importance(folder: Path) -> Path:
    """Draw ``importance.html`` from ``importance.json`` in ``folder``.

    Raises:
        UserError: If it is missing or damaged, or the page cannot be written.
    """
    found = read_json(folder / "importance.json")
    body = section("curves", "Loss against share removed", _curves(found), _lead(found))
    for axis, rows in {"layers": _blocks(found), **found["units"]}.items():
        if rows:
            body += section(axis, AXES[axis].capitalize(), f"<figure>{heat_map(rows)}</figure>", _note(axis))
    path = folder / "importance.html"
    write_text(path, document("Importance", "importance", f"<h1>What matters</h1>{body}"))
    return path


def _lead(found: Mapping[str, Any]) -> str:
    units, layers = escape(found["importance"]), escape(found["layer_importance"])
    return (
        f"Mean loss on {found['calibration']} calibration samples when the least important share of one kind "
        f"of part is removed and nothing is trained. Units are scored by <b>{units}</b>, layers by "
        f"<b>{layers}</b>."
    )


def _note(axis: str) -> str:
    if axis == "layers":
        return "One row a layer; the darker, the more it matters."
    return (
        "One row a layer or group, one column a unit; of many units, means of twelfths, the least important "
        "left. Colour goes by the logarithm of the score, over all rows: the darker, the more it matters."
    )


def _blocks(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [{"name": name, "scores": [score]} for name, score in found["blocks"].items()]


def _curves(found: Mapping[str, Any]) -> str:
    bands = []
    for place, (axis, points) in enumerate(found["curves"].items()):
        x, y = [100 * share for share, _ in points], [loss for _, loss in points]
        bands.append(Band(COLOURS[place % len(COLOURS)], AXES[axis], x, y, y, y))
    chart = curves(
        bands,
        label="Loss against the share removed",
        x_title="removed, in per cent",
        size=(640, 300),
    )
    return f"<figure>{chart}</figure>"


def heat_map(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rectangles whose opacity follows the logarithm of the score.

    Args:
        rows: Each with ``name`` and ``scores``.
    """
    width = NAMES + CELL * max(len(row["scores"]) for row in rows) + 4
    positive = [score for row in rows for score in row["scores"] if score > 0]
    low, high = (math.log(min(positive)), math.log(max(positive))) if positive else (0.0, 0.0)
    parts = []
    for number, row in enumerate(rows):
        y = number * ROW
        text = escape(_short(row["name"]))
        parts.append(f'<text class="tick" x="{NAMES - 8}" y="{y + 13}" text-anchor="end">{text}</text>')
        for place, score in enumerate(row["scores"]):
            share = (math.log(score) - low) / (high - low) if score > 0 and high > low else 0.0
            parts.append(
                f"<g><title>{text}: {score:.3g}</title>"
                f'<rect class="bar student" x="{NAMES + place * CELL}" y="{y + 1}" width="{CELL - 2}" '
                f'height="{ROW - 2}" rx="2" style="fill-opacity:{0.06 + 0.94 * share:.2f}"/></g>'
            )
    height = ROW * len(rows) + 4
    return (
        f'<svg viewBox="0 0 {width} {height}" style="width:{width}px" role="img" '
        f'aria-label="Scores">{"".join(parts)}</svg>'
    )


def _short(name: str) -> str:
    return name if len(name) <= 26 else f"…{name[-25:]}"
