"""The section of schemes that train several networks, or one with several exits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from html import escape
from typing import Any

from potstill.report._figures import history_band
from potstill.report._material import Material, section
from potstill.report.charts import Band, curves

__all__ = ["networks"]

ENSEMBLE = "ensemble"


def networks(material: Material) -> str:
    """Every peer, generation or exit on the test part, their ensemble, and how peers came on together."""
    found = material.result.get("networks")
    if not isinstance(found, dict) or not found:
        return ""
    chosen = material.result.get("chosen") or []
    over = material.result.get("over_control") or {}
    rows = "".join(
        _row(material, name, values, _role(name, chosen), over.get(name)) for name, values in found.items()
    )
    if together := material.result.get(ENSEMBLE):
        rows += _row(
            material, ENSEMBLE, together, "averaged probabilities of all of them", over.get(ENSEMBLE)
        )
    if "control" in material.arms:
        rows += _row(
            material,
            "control",
            material.model("control").get("per_seed") or [],
            "the student's network alone",
        )
    metric = material.metric_title
    heads = f'<th scope="col">Network</th><th scope="col" class="num">{metric}</th>'
    heads += '<th scope="col">Each seed</th>'
    gains = f"Over the control, {escape(material.gain_unit)}, 95 % interval" if over else ""
    heads += f'<th scope="col">{gains}</th>'
    table = (
        f'<div class="scroll"><table class="plain"><thead><tr>{heads}<th scope="col"></th></tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )
    lead = f"{metric} on the test part of all that was trained together, in the order of training or depth."
    if over:
        lead += " Of many, the best looks better than it is: each interval is for that network alone."
    figures = _course(material, list(found)) + _agreement(material)
    return section(
        "networks", "All networks", table + (figures and f'<div class="pair">{figures}</div>'), lead
    )


def _row(
    material: Material,
    name: str,
    values: Sequence[float],
    role: str,
    over: Mapping[str, Any] | None = None,
) -> str:
    mean = material.written(sum(values) / len(values)) if values else ""
    seeds = ", ".join(material.written(value) for value in values) if len(values) > 1 else ""
    gain = ""
    if over:
        low, high = (material.gained(value) for value in over["interval"])
        gain = f"<b>{material.gained(over['gain'])}</b> ({low} to {high}): {escape(over['verdict'])}"
    return (
        f'<tr><th scope="row">{escape(name)}</th><td class="num"><b>{mean}</b></td><td>{seeds}</td>'
        f"<td>{gain}</td><td>{escape(role)}</td></tr>"
    )


def _role(name: str, chosen: Sequence[str]) -> str:
    times = list(chosen).count(name)
    if not times:
        return ""
    return "the student" if times == len(chosen) else f"the student of {times} of {len(chosen)} seeds"


def _course(material: Material, names: Sequence[str]) -> str:
    """Validation of each peer, of all together, and of the control, over the epochs."""
    bands = list(_bands(material, names))
    if len(bands) < 2:
        return ""
    label = f"validation {material.metric} of {', '.join(band.label for band in bands)} over the epochs"
    title = f"Validation {escape(material.metric_name)} of each, and of all together"
    chart = curves(bands, label=label, x_title="epoch", fractions=material.shares)
    return f"<figure><h3>{title}</h3>{chart}</figure>"


def _bands(material: Material, names: Sequence[str]) -> Iterator[Band]:
    histories = material.content.histories
    peers = [(name, history_band(histories, "student", f"{name}.{material.metric}")) for name in names]
    shown = [(name, "other", band) for name, band in peers if band is not None]
    if not shown:
        return
    shown += [
        (name, arm, band)
        for name, arm, band in (
            ("control", "control", history_band(histories, "control", material.metric)),
            (ENSEMBLE, "student", history_band(histories, "student", ENSEMBLE)),
        )
        if band is not None
    ]
    yield from (replace(band, arm=arm, label=name) for name, arm, band in shown)


def _agreement(material: Material) -> str:
    band = history_band(material.content.histories, "student", "agreement")
    if band is None:
        return ""
    label = "agreement of the peers over the epochs"
    chart = curves([replace(band, label="")], label=label, x_title="epoch", fractions=True)
    return f"<figure><h3>How often two of them give the same answer, on validation</h3>{chart}</figure>"
