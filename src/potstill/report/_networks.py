"""The section of schemes that train several networks, or one with several exits."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from potstill.report._figures import history_band
from potstill.report._format import percent
from potstill.report._material import Material, section
from potstill.report.charts import curves

__all__ = ["networks"]


def networks(material: Material) -> str:
    """Every peer, generation or exit on the test part, their ensemble, and how far peers agree over time."""
    found = material.result.get("networks")
    if not isinstance(found, dict) or not found:
        return ""
    ensemble = material.result.get("ensemble")
    chosen = material.result.get("chosen") or []
    rows = "".join(_row(name, values, _role(name, chosen)) for name, values in found.items())
    if ensemble:
        rows += _row("ensemble", ensemble, "averaged probabilities of all of them")
    if "control" in material.arms:
        rows += _row(
            "control", material.model("control").get("per_seed") or [], "the student's network alone"
        )
    heads = '<th scope="col">Network</th><th scope="col" class="num">Mean</th>'
    heads += '<th scope="col">Each seed</th><th scope="col"></th>'
    table = (
        f'<div class="scroll"><table class="plain"><thead><tr>{heads}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )
    metric = escape(material.metric).capitalize()
    lead = f"{metric} on the test part of all that was trained together, in the order of training or depth."
    return section("networks", "All networks", table + _agreement(material), lead)


def _row(name: str, values: Sequence[float], role: str) -> str:
    mean = percent(sum(values) / len(values)) if values else ""
    seeds = ", ".join(percent(value) for value in values) if len(values) > 1 else ""
    return (
        f'<tr><th scope="row">{escape(name)}</th><td class="num"><b>{mean}</b></td><td>{seeds}</td>'
        f"<td>{escape(role)}</td></tr>"
    )


def _role(name: str, chosen: Sequence[str]) -> str:
    times = list(chosen).count(name)
    if not times:
        return ""
    return "the student" if times == len(chosen) else f"the student of {times} of {len(chosen)} seeds"


def _agreement(material: Material) -> str:
    band = history_band(material.content.histories, "student", "agreement")
    if band is None:
        return ""
    label = "agreement of the peers over the epochs"
    chart = curves([band], label=label, x_title="epoch", fractions=True)
    title = "How often two of them give the same answer, on validation"
    return f'<div class="pair"><figure><h3>{title}</h3>{chart}</figure></div>'
