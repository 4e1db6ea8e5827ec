"""How each named part of the loss fell during training, from the rows of ``metrics.jsonl``."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from html import escape

from potstill.report._material import Material
from potstill.report.charts import Band, curves

__all__ = ["loss_parts"]

STRETCHES = 40


def loss_parts(material: Material) -> str:
    """One small chart a term: the unweighted mean of its loss over training steps, with a band over seeds."""
    figures = ""
    for term in material.content.terms:
        bands = [band for arm in material.arms if (band := _band(material, arm, term.name))]
        if bands:
            chart = curves(bands, label=f"{term.name} during training", x_title="step", size=(290, 220))
            figures += f"<figure><h3>{escape(term.name)}</h3>{chart}</figure>"
    if not figures:
        return ""
    return f'<h3 class="part">Loss parts during training, unweighted</h3><div class="triple">{figures}</div>'


def _band(material: Material, arm: str, name: str) -> Band | None:
    logged: dict[int, list[tuple[float, float]]] = defaultdict(list)
    for row in material.metrics:
        parts = row.get("parts", row)
        value = parts.get(name) if isinstance(parts, dict) else None
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
