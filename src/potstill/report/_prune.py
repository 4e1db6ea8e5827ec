"""The section of a pruned student: its rounds, and the candidates among which each round chose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from potstill.report._axes import AXES
from potstill.report._format import bytes_text, compact, milliseconds, percent
from potstill.report._front import front
from potstill.report._material import Material, section

__all__ = ["rounds"]

WAYS = {"scratch": "same shape, fresh weights", "one_shot": "same size, cut in one removal"}
FRONT = (
    '<p class="note">Calibration loss of every candidate before training (ring) and, of the best, after a '
    "short one (disc); in colour: the chosen ones. The dashed line is the front: nothing smaller is better. "
    "Where discs stand in another order than rings, the short training turned the choice around.</p>"
)
WORDS = {
    "parameters": "parameters",
    "macs": "multiply-accumulates of one image",
    "bytes": "bytes",
    "latency": "measured time of a forward pass",
    "weights": "weights of layers that are not zero",
}


def rounds(material: Material) -> str:
    """A row a round, and a row a candidate."""
    found = material.result.get("prune")
    if not isinstance(found, dict):
        return ""
    body = f'<h3 class="part">Rounds</h3>{_rounds(found, material)}'
    body += f'<h3 class="part">What was lost, and what came back</h3>{_recovery(found, material)}'
    body += f'<h3 class="part">Loss against size</h3><figure>{front(found)}</figure>{FRONT}'
    body += f'<h3 class="part">Candidates</h3>{_candidates(found)}'
    return section("rounds", "Rounds of pruning", body, _lead(found))


def _lead(found: Mapping[str, Any]) -> str:
    zeros = _zeros(found["zeros"]) if "zeros" in found else ""
    if found["quantity"] == "weights":
        return (
            f"The student is the teacher with single weights at zero, trained with the untouched original as "
            f"teacher; the control has the same zeros and learnt from labels alone. {zeros}"
        )
    return f"{_parts(found)} {zeros}".strip()


def _zeros(zeros: Mapping[str, Any]) -> str:
    """Which single weights of the student are zero."""
    way = "magnitude" if zeros["importance"] == "magnitude" else "magnitude times the norm of their inputs"
    pattern = str(zeros["pattern"])
    kept, colon, every = pattern.partition(":")
    kind = f" ({kept} of every {every} are kept)" if colon else ""
    return (
        f"<b>{percent(zeros['count'] / zeros['of'], 1)} of the weights</b> of its layers are zero and stayed "
        f"so through training{kind}; they were chosen by {way}."
    )


def _parts(found: Mapping[str, Any]) -> str:
    target, quantity = found["target"], found["quantity"]
    flips = sum(row["flipped"] for row in found["rounds"])
    times = {0: "never", 1: "once"}.get(flips, f"{flips} times")
    return (
        f"The student is the teacher with parts removed. Aimed at: {_amount(target['absolute'], quantity)} "
        f"{escape(WORDS[quantity])}, {percent(target['absolute'] / target['whole'], 1)} of the original's "
        f"{_amount(target['whole'], quantity)}; reached: <b>{_amount(found['reached'], quantity)}</b> "
        f"({percent(found['reached'] / target['whole'], 1)}). Each round scored the network on calibration "
        "samples, removed the least, and trained what was left with the untouched original as teacher; the "
        "control lost the same parts and learnt from labels alone. Candidates mix fewer blocks with narrower "
        "ones; the best by calibration loss were trained shortly and compared again, which changed the "
        f"choice {times}."
    )


def _amount(value: float, quantity: str) -> str:
    if quantity == "latency":
        return milliseconds(value)
    return bytes_text(value) if quantity == "bytes" else compact(value)


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f'<th scope="col" class="num">{one}</th>' for one in heads)
    body = "".join("<tr>" + "".join(f'<td class="num">{one}</td>' for one in row) + "</tr>" for row in rows)
    return (
        f'<div class="scroll"><table class="plain"><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _rounds(found: Mapping[str, Any], material: Material) -> str:
    heads: tuple[str, ...] = (
        "Round",
        "Size",
        "of the original",
        "Blocks gone",
        "Units gone",
        "Loss before removal",
    )
    heads = (*heads, "after it", "Validation, student", "control")
    rows = []
    for row in found["rounds"]:
        chosen = row["candidates"][0]
        rows.append(
            (
                str(row["round"]),
                _amount(row["cost"], found["quantity"]),
                percent(row["cost"] / found["target"]["whole"], 1),
                str(len(chosen["blocks"])),
                _units(chosen),
                f"{row['loss_before']:.3f}",
                f"{chosen['loss']:.3f}",
                _mean(row["validation"].get("student"), material),
                _mean(row["validation"].get("control"), material),
            )
        )
    return _table(heads, rows)


def _units(candidate: Mapping[str, Any]) -> str:
    """How many units go: one kind alone as a number, several by name."""
    gone = candidate.get("gone", {})
    if len(gone) > 1:
        return ", ".join(f"{count:,} {AXES[axis]}" for axis, count in gone.items())
    return f"{sum(len(units) for units in candidate['units'].values()):,}"


def _mean(values: Sequence[float] | None, material: Material) -> str:
    return material.written(sum(values) / len(values)) if values else ""


def _recovery(found: Mapping[str, Any], material: Material) -> str:
    """On the test part: the cut network before training, what the arms regained, and rivals of its size."""
    heads = ("Network", material.metric, "Regained", "95 % interval", "Student's gain over it")
    rows = [("cut, before training", material.written(found["start"][material.metric]), "0.0 %", "", "")]
    for arm in ("control", "student"):
        if arm in material.arms:
            share = found.get("regained", {}).get(arm)
            told = ("", "") if share is None else (percent(share["share"], 1), _span(share["interval"]))
            gain = material.gained(material.result["gain"]) if arm == "control" else ""
            rows.append((arm, material.written(material.score(arm)), *told, gain))
    for name, rival in found.get("rivals", {}).items():
        written = material.written(rival[material.metric])
        rows.append((WAYS[name], written, "", "", f"{material.gained(rival['gain'])} ({rival['verdict']})"))
    if "teacher" in material.arms:
        rows.append(("teacher", material.written(material.score("teacher")), "100.0 %", "", ""))
    return _table(heads, rows)


def _span(interval: Sequence[float]) -> str:
    return f"{percent(interval[0], 1)} to {percent(interval[1], 1)}"


def _candidates(found: Mapping[str, Any]) -> str:
    heads = ("Round", "Blocks gone", "Units gone", "Size", "Calibration loss", "after a short training", "")
    rows = [
        (
            str(row["round"]),
            str(len(one["blocks"])),
            _units(one),
            _amount(one["cost"], found["quantity"]),
            f"{one['loss']:.3f}",
            "" if one["trial"] is None else f"{one['trial']:.3f}",
            "" if place else "<b>chosen</b>",
        )
        for row in found["rounds"]
        for place, one in enumerate(row["candidates"])
    ]
    return _table(heads, rows)
