"""What each named part of the loss came to and how hard it pulled, from the rows of ``metrics.jsonl``."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from html import escape

from potstill.report._material import Material
from potstill.report._pulls import pulls
from potstill.report.charts import Band, curves

__all__ = ["loss_parts"]

STRETCHES = 40
PULL = "weighted_gradient_norms"
COLUMNS = {"parts": "unweighted", "weighted": "weighted", PULL: "length of weighted gradient"}


def loss_parts(material: Material) -> str:
    """Small charts over training steps: a row a term, a column for its value, weighted value and gradient."""
    names = [term.name for term in material.content.terms]
    found = {
        (name, kind): bands
        for name in names
        for kind in COLUMNS
        if (bands := [band for arm in material.arms if (band := _band(material, arm, name, kind))])
    }
    columns = [kind for kind in COLUMNS if any(key[1] == kind for key in found)]
    if not columns:
        return ""
    figures = "".join(
        _figure(name, kind, found.get((name, kind), ()), _span(found, kind))
        for name in names
        for kind in columns
        if any((name, other) in found for other in columns)
    )
    title = "Parts of the loss during training"
    grid = "pair" if len(columns) == 2 else "triple"
    return f'<h3 class="part">{title}</h3>{_words(material, columns)}<div class="{grid}">{figures}</div>'


def _span(found: Mapping[tuple[str, str], Sequence[Band]], kind: str) -> tuple[float, float] | None:
    """One vertical axis for all gradients, so that their lengths can be compared by eye."""
    if kind != PULL:
        return None
    bands = [band for (_, other), bands in found.items() if other == kind for band in bands]
    return 0.0, max(value for band in bands for value in band.high)


def _figure(name: str, kind: str, bands: Sequence[Band], span: tuple[float, float] | None) -> str:
    if not bands:
        return "<figure></figure>"
    label = f"{name} during training" if kind == "parts" else f"{name} during training, {COLUMNS[kind]}"
    chart = curves(bands, label=label, x_title="step", size=(290, 220), y_span=span)
    return f"<figure><h3>{escape(name)} <small>{COLUMNS[kind]}</small></h3>{chart}</figure>"


def _words(material: Material, columns: Sequence[str]) -> str:
    """How to read the charts, and what stands out in them."""
    lead = "Values are means over the predictions of a batch, as the loss gives them"
    lead += "; weighted, they add up to what is minimised." if len(columns) > 1 else "."
    if PULL in columns:
        lead += (
            " The gradient's length, by the student's own weights, says how hard a part pulls; it is drawn "
            "on one scale for all parts."
        )
    names = [term.name for term in material.content.terms]
    rows = [_by_name(row, names) for row in material.metrics if row.get("arm") == "student"]
    said = pulls(rows, names)
    if PULL in columns and not said:
        said = ["No part did nothing and none drowned the rest."]
    return f'<p class="lead">{lead} {escape(" ".join(said))}</p>'


def _by_name(row: Mapping[str, object], names: Sequence[str]) -> dict[str, object]:
    """The gradients of a row by term."""
    found = row.get(PULL)
    if not isinstance(found, dict):
        return {}
    return {PULL: {name: value for name in names if (value := _value(found, name)) is not None}}


def _value(parts: Mapping[str, object], name: str) -> float | None:
    """What a part came to; where several networks or exits have it, ``peer1.kl``, the mean of theirs."""
    found = [value for key, value in parts.items() if key == name or key.endswith(f".{name}")]
    numbers = [float(value) for value in found if isinstance(value, int | float)]
    return sum(numbers) / len(numbers) if numbers else None


def _band(material: Material, arm: str, name: str, kind: str = "parts") -> Band | None:
    logged: dict[int, list[tuple[float, float]]] = defaultdict(list)
    for row in material.metrics:
        parts = row.get(kind, row if kind == "parts" else None)
        value = _value(parts, name) if isinstance(parts, dict) else None
        if row.get("arm") == arm and isinstance(value, int | float) and math.isfinite(value):
            logged[int(row.get("seed", 0))].append((float(row.get("step", 0)), float(value)))
    if not logged:
        return None
    last = max(step for rows in logged.values() for step, _ in rows)
    count = min(STRETCHES, *(len(rows) for rows in logged.values()))
    places = _stretches(logged, last, count)
    seeds = [places[place] for place in sorted(places)]
    return Band(
        arm=arm,
        label=arm,
        x=[(place + 1) * last / count for place in sorted(places)],
        low=[min(values) for values in seeds],
        mean=[sum(values) / len(values) for values in seeds],
        high=[max(values) for values in seeds],
    )


def _stretches(
    logged: Mapping[int, Sequence[tuple[float, float]]], last: float, count: int
) -> dict[int, list[float]]:
    """Each seed's mean over stretches of equally many steps, as seeds are not logged at the same steps."""
    stretches: dict[int, list[float]] = defaultdict(list)
    for rows in logged.values():
        mine: dict[int, list[float]] = defaultdict(list)
        for step, value in rows:
            mine[max(math.ceil(step / (last or 1.0) * count) - 1, 0)].append(value)
        for place, values in mine.items():
            stretches[place].append(sum(values) / len(values))
    return stretches
