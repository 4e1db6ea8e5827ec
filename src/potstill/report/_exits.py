"""The section of a network with early exits: what leaving early costs and saves, and what is promised."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from potstill.report._exit_figures import cost_figures, legend, other_name
from potstill.report._format import compact, milliseconds, percent, points, share_text
from potstill.report._material import Material, section
from potstill.report.charts import reliability
from potstill.report.samples import Leaver

__all__ = ["exits"]

Rows = Sequence[Sequence[str]]


def exits(material: Material) -> str:
    """Thresholds, their promise, cost, shares, calibration, examples and shifted images."""
    found = material.result.get("early_exit")
    if not isinstance(found, dict):
        return ""
    body = (
        f'<div class="pair">{cost_figures(found, material.beside)}</div>{legend(found)}'
        + _beside(material.beside)
        + _titled("Each exit", _exit_table(found))
        + _titled("Timed against the whole network, in turns", _timed_table(found))
        + _titled("Other kinds of policy, chosen for the same wish", _policy_table(found))
        + _shifts(found)
        + _gallery(material, found)
        + _calibration(material, found)
    )
    return section("exits", "Early exits", body, _lead(found))


def _titled(title: str, body: str) -> str:
    return f'<h3 class="part">{title}</h3>{body}' if body else ""


def _lead(found: Mapping[str, Any]) -> str:
    chosen, calibration = found["chosen"], found["calibration"]
    kind = escape(found["policy"]["kind"])
    text = (
        f"An image leaves at the first exit that is sure enough by {kind}; what it skips is not computed. "
        f"Thresholds were chosen on {calibration['samples']:,} {escape(calibration['part'])} images, so that "
        f"with confidence {percent(found['confidence'], 0)} at most {_points(found['promised'])} points are "
        "lost: the share of images for which the whole network is right and the exit taken is wrong. All "
        f"figures here are of {found['reporting']['samples']:,} other test images: "
        f"<b>{percent(chosen['accuracy'])}</b> right against {percent(chosen['whole'])} of the whole "
        f"network, {share_text(1 - chosen['shares'][-1])} leave early."
    )
    if found["note"]:
        text += f" <b>{escape(found['note'][:1].upper() + found['note'][1:])}.</b>"
    if found["cannot_cut"]:
        text += (
            " <b>The exits save no time: the network is computed whole, it cannot be cut at them, as "
            f"{escape(found['cannot_cut'])}.</b>"
        )
    return text + (
        " Times up to each exit are measured; along the lines they are weighted by the shares that leave "
        "there. The chosen point is timed as it runs."
    )


def _points(fraction: float) -> str:
    return f"{100 * fraction:.2f}"


def _table(heads: Sequence[str], rows: Rows) -> str:
    """A table whose first column names the row and whose others are numbers, given as HTML."""
    head = "".join(
        f'<th scope="col"{" class=num" if place else ""}>{one}</th>' for place, one in enumerate(heads)
    )
    body = "".join(
        f'<tr><th scope="row">{row[0]}</th>'
        + "".join(f'<td class="num">{one}</td>' for one in row[1:])
        + "</tr>"
        for row in rows
    )
    return (
        f'<div class="scroll"><table class="plain"><thead><tr>{head}</tr></thead><tbody>{body}</tbody>'
        "</table></div>"
    )


def _exit_table(found: Mapping[str, Any]) -> str:
    heads = ["Exit", "Leave here", "of them right", "All images right", "Operations", "Time at batch 1"]
    heads += ["Temperature", "Calibration error"]
    rows = [
        (
            escape(row["name"]) + _meter(row["share"]),
            f"<b>{percent(row['share'], 1)}</b>",
            percent(row["accuracy_of_leavers"], 1),
            percent(row["accuracy"]),
            compact(row["macs"]),
            milliseconds(row["latency_ms"]),
            f"{row['temperature']:.2f}",
            f"{percent(row['ece'])} → {percent(row['ece_calibrated'])}",
        )
        for row in found["exits"]
    ]
    return _table(heads, rows)


def _meter(share: float) -> str:
    return f'<span class="meter"><i style="width:{100 * share:.1f}%"></i></span>'


def _timed_table(found: Mapping[str, Any]) -> str:
    timed: Mapping[str, Mapping[str, Any]] = found["chosen"]["timed"]
    if not timed:
        return ""
    heads = ("Batch", "Early exit", "Whole", "Whole, batch norms folded", "Quicker", "than folded")
    rows = []
    for size, row in timed.items():
        folded = row.get("folded")
        rows.append(
            (
                size,
                f"<b>{milliseconds(row['early']['median_ms'])}</b>",
                milliseconds(row["whole"]["median_ms"]),
                milliseconds(folded and folded["median_ms"]),
                f"<b>{row['whole_over_early']:.2f}×</b>",
                f"{row['folded_over_early']:.2f}×" if folded else "–",
            )
        )
    return _table(heads, rows)


def _beside(beside: Material | None) -> str:
    """The networks of another run, as that run measured them."""
    if beside is None:
        return ""
    heads = ("Network", "Right", "Parameters", "Operations", "Time at batch 1")
    rows = []
    for arm in ("student", "control"):
        if arm in beside.arms:
            row, latency = beside.model(arm), beside.latency(arm, "1")
            rows.append(
                (
                    escape(other_name(beside, arm)),
                    f"<b>{percent(beside.score(arm))}</b>",
                    compact(row["parameters"]),
                    compact(row["macs"]),
                    milliseconds(latency["median_ms"] if latency else None),
                )
            )
    lead = (
        f"The diamonds: {escape(beside.content.title)}, from a run of its own, on all of its "
        f"{beside.result['test_samples']:,} test images and timed there."
    )
    title = "Beside it: a smaller network"
    return _titled(title, f'<p class="lead">{lead}</p>{_table(heads, rows)}')


def _policy_table(found: Mapping[str, Any]) -> str:
    heads = ("Policy", "Promised at most", "Right", "Lost", "Leave early", "Operations", "Time at batch 1")
    rows = [
        (
            escape(kind),
            f"{_points(row['promised'])} points",
            percent(row["accuracy"]),
            f"{points(row['lost'])} points",
            percent(1 - row["shares"][-1], 0),
            compact(row["macs"]),
            milliseconds(row["latency_ms"]),
        )
        for kind, row in found["policies"].items()
    ]
    return _table(heads, rows)


def _shifts(found: Mapping[str, Any]) -> str:
    if not found["shift"]:
        return ""
    heads = ("Images", "Whole network", "Early exit", "Wrongly left", "Leave early", "Operations", "Promise")
    rows = [
        (
            f"{escape(row['name'])} <small>{escape(row['what'])}</small>",
            percent(row["whole"]),
            percent(row["accuracy"]),
            f"{_points(row['risk'])} points",
            percent(1 - row["shares"][-1], 0),
            compact(row["macs"]),
            "kept" if row["kept"] else '<b class="lost">not kept</b>',
        )
        for row in found["shift"]
    ]
    kept = [row["name"] for row in found["shift"] if row["kept"]]
    said = f"It was kept on {escape(' and '.join(kept))} images." if kept else "It was kept on none of them."
    text = (
        "The promise is for images like those that chose the thresholds. The same thresholds on changed "
        f"images, where nothing is promised: {said[0].lower()}{said[1:]}"
    )
    return _titled(
        "Other images than it was calibrated for", f'<p class="lead">{text}</p>{_table(heads, rows)}'
    )


def _gallery(material: Material, found: Mapping[str, Any]) -> str:
    groups = ""
    for row in found["exits"]:
        mine = [one for one in material.content.leavers if one.exit == row["name"]]
        if mine:
            shown = "".join(map(_thumbnail, mine))
            name = f"Left at {escape(row['name'])} <small>{percent(row['share'], 1)} of all</small>"
            groups += f'<h4>{name}</h4><div class="thumbs">{shown}</div>'
    lead = "<p class=lead>The first images of each class in turn; red is a wrong answer.</p>"
    return _titled("Who left early, and who late", lead + groups) if groups else ""


def _thumbnail(leaver: Leaver) -> str:
    wrong = leaver.answer != leaver.label
    caption = escape(leaver.label) if not wrong else f"{escape(leaver.answer)}, not {escape(leaver.label)}"
    return (
        f'<figure{" class=wrong" if wrong else ""}><img src="{escape(leaver.image)}" width="56" height="56" '
        f'alt="{escape(leaver.label)}"><figcaption>{caption} <small>{share_text(leaver.confidence)}</small>'
        "</figcaption></figure>"
    )


def _calibration(material: Material, found: Mapping[str, Any]) -> str:
    figures = ""
    for row in found["exits"]:
        bins = material.content.exit_bins.get(row["name"])
        if bins:
            small = f"<small>{percent(row['ece'])} → {percent(row['ece_calibrated'])}</small>"
            chart = reliability("student", bins)
            figures += f"<figure><h3>{escape(row['name'])} {small}</h3>{chart}</figure>"
    lead = (
        "<p class=lead>How often each exit is right against how sure it is, with its temperature fitted on "
        "the calibration images; the calibration error before and after.</p>"
    )
    return _titled("How far each exit can be taken at its word", f'{lead}<div class="triple">{figures}</div>')
