"""Where a detector's hints and losses come from, and its precision over recall."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from potstill.metrics.average_precision import RECALLS
from potstill.report._format import percent
from potstill.report._material import Material, section
from potstill.report.charts import Band, curves
from potstill.report.scenes import ClassCurve, Hint

__all__ = ["precision_curves", "regions"]

MOST_CURVES = 9


def precision_curves(material: Material) -> str:
    """Precision over recall, a chart a class."""
    found = material.content.detected
    if found is None or not found.curves:
        return ""
    shown = sorted(found.curves, key=lambda curve: -curve.objects)[:MOST_CURVES]
    figures = "".join(_curve(curve, material.arms) for curve in shown)
    lead = (
        "How many of a network's boxes are right, at the score at which it finds so many of the objects; a "
        "box is right if it overlaps an object of its class by half. The area below a curve is the average "
        "precision at 0.5."
    )
    if len(found.curves) > len(shown):
        lead += f" The {len(shown)} classes with most objects are shown."
    return section("curves", "Precision and recall", f'<div class="triple">{figures}</div>', lead)


def _curve(curve: ClassCurve, arms: Sequence[str]) -> str:
    bands = [_band(arm, *curve.precision[arm]) for arm in arms if arm in curve.precision]
    chart = curves(
        bands,
        label=f"precision over recall of {curve.name}",
        x_title="recall, per cent",
        fractions=True,
        size=(290, 240),
        y_span=(0.0, 1.0),
    )
    return f"<figure><h3>{escape(curve.name)} <small>{curve.objects:,} objects</small></h3>{chart}</figure>"


def _band(arm: str, low: Sequence[float], mean: Sequence[float], high: Sequence[float]) -> Band:
    """A curve up to the greatest recall that is reached."""
    end = max((place for place, value in enumerate(mean) if value > 0), default=0) + 1
    return Band(arm, arm, [100 * float(each) for each in RECALLS[:end]], low[:end], mean[:end], high[:end])


def regions(material: Material) -> str:
    """Where hints were taken, and of which regions each part of the loss is the sum."""
    found = material.content.detected
    table = _region_table(material)
    hints = () if found is None else found.hints
    if not table and not hints:
        return ""
    pictures = "".join(map(_hint, hints))
    lead = (
        "Most of an image is background, and many small differences there can drown the few objects. "
        "Images are bright where maps were compared, by the weight of each place."
        if hints
        else "Most of an image is background, and many small differences there can drown the few objects."
    )
    return section("regions", "Where it was taught", f'<div class="triple">{pictures}</div>{table}', lead)


def _hint(hint: Hint) -> str:
    width, height = hint.size
    rows, columns = hint.grid
    return (
        f'<figure><img src="{escape(hint.image)}" width="{width}" height="{height}" class="wide" '
        f'alt="where {escape(hint.term)} compares maps"><figcaption>{escape(hint.term)} '
        f"<small><code>{escape(hint.layer)}</code>, {rows} × {columns} places; boxes touch "
        f"{percent(hint.covered, 0)} of them and have {percent(hint.weight, 0)} of the weight</small>"
        "</figcaption></figure>"
    )


def _region_table(material: Material) -> str:
    """Shares of each term's loss by region, in the first and the last tenth of the training."""
    rows = [
        row
        for row in material.metrics
        if row.get("arm") == "student" and isinstance(row.get("regions"), dict)
    ]
    if not rows:
        return ""
    last = max(float(row["step"]) for row in rows)
    stretches = {
        "first tenth": [row["regions"] for row in rows if row["step"] <= 0.1 * last] or [rows[0]["regions"]],
        "last tenth": [row["regions"] for row in rows if row["step"] > 0.9 * last],
    }
    lines = ""
    for term in material.content.terms:
        names = [name for name in rows[-1]["regions"] if name.partition("/")[0] == term.name]
        for number, (stretch, some) in enumerate(stretches.items()):
            means = {name: sum(row.get(name, 0.0) for row in some) / len(some) for name in names}
            if names:
                lines += _region_row(term.name if number == 0 else "", stretch, means)
    head = '<th scope="col">Term</th><th scope="col">Training</th><th scope="col" class="wide">Share</th>'
    table = f'<table class="plain"><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table>'
    return f'<h3 class="part">Loss by region</h3><div class="scroll">{table}</div>'


def _region_row(term: str, stretch: str, means: Mapping[str, float]) -> str:
    total = sum(means.values()) or 1.0
    bars, words = "", []
    for name, value in means.items():
        region = name.partition("/")[2]
        kind = "front" if "objects" in region else "back"
        bars += f'<i class="{kind}" style="width:{100 * value / total:.1f}%"></i>'
        words.append(f"{escape(region)} {percent(value / total, 0)}")
    return (
        f'<tr><th scope="row">{escape(term)}</th><td class="stretch">{stretch}</td><td>'
        f'<span class="shares">{bars}</span><small class="below">{"; ".join(words)}</small></td></tr>'
    )
