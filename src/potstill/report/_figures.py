"""The sections with charts: learning curves, trade-offs, classes, calibration."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from potstill.report._format import interval_points, percent, points
from potstill.report._headline import interval_track
from potstill.report._material import Material, section
from potstill.report._training import loss_parts
from potstill.report.charts import Band, Point, curves, reliability, trade_off
from potstill.report.content import ClassDifference, History

__all__ = ["calibration", "classes", "history_band", "learning", "trade_offs"]

CLASSES_SHOWN = 24


def learning(material: Material) -> str:
    """Validation metric and loss over the epochs, mean and band over seeds."""
    figures = ""
    for key in (material.metric, "loss"):
        bands = [
            band for arm in material.arms if (band := history_band(material.content.histories, arm, key))
        ]
        if not bands:
            continue
        share = key == material.metric and material.shares
        name = f"Validation {key if key == 'loss' else material.metric_name}"
        chart = curves(
            bands,
            label=f"{name} of {' and '.join(band.arm for band in bands)} over the epochs",
            x_title="epoch",
            fractions=share,
        )
        figures += f"<figure><h3>{escape(name)}</h3>{chart}</figure>"
    if not figures:
        return ""
    lead = "Measured on validation data after each epoch."
    if "control" in material.arms:
        lead = (
            "Control and student see the same batches in the same order for the same number of steps; only "
            "what the student imitates differs."
        )
    if material.num_seeds > 1:
        lead += (
            f" Lines are means over {material.num_seeds} seeds, bands go from the lowest seed to the highest."
        )
    return section("learning", "Learning", f'<div class="pair">{figures}</div>{loss_parts(material)}', lead)


def history_band(histories: Sequence[History], arm: str, key: str) -> Band | None:
    """A validation figure of one arm over the epochs, with a band over its seeds."""
    by_epoch: dict[float, list[float]] = {}
    for history in histories:
        if history.arm == arm:
            for row in history.rows:
                if math.isfinite(row.get(key, math.nan)) and "epoch" in row:
                    by_epoch.setdefault(row["epoch"], []).append(row[key])
    if not by_epoch:
        return None
    x = sorted(by_epoch)
    values = [by_epoch[epoch] for epoch in x]
    return Band(
        arm=arm,
        label=arm,
        x=x,
        low=[min(some) for some in values],
        mean=[sum(some) / len(some) for some in values],
        high=[max(some) for some in values],
    )


def trade_offs(material: Material) -> str:
    """The metric against parameters and against latency."""
    metric, write = material.metric_title, percent if material.shares else material.written
    if material.content.pictures:  # of a reference itself there is no finite PSNR
        metric, write = "Structural similarity", "{:.3f}".format
    figures = ""
    sizes = _points(material, None)
    if sizes:
        chart = trade_off(
            sizes,
            write_metric=write,
            label=f"{metric} against parameters",
            x_title="parameters",
            unit="count",
        )
        figures += f"<figure><h3>{metric} against size</h3>{chart}</figure>"
    times = _points(material, "1")
    if times:
        title = f"milliseconds for one {material.sample}"
        chart = trade_off(
            times, write_metric=write, label=f"{metric} against latency", x_title=title, unit="ms"
        )
        figures += f"<figure><h3>{metric} against latency</h3>{chart}</figure>"
    side = "Up" if material.result.get("higher_is_better", True) or material.content.pictures else "Down"
    lead = (
        f"{side} and to the left is better. Whiskers show the 95&nbsp;% interval and, for time, the 10th to "
        "the 90th percentile; the scale of cost is logarithmic."
    )
    return section("cost", "What it costs", f'<div class="pair">{figures}</div>', lead) if figures else ""


def _points(material: Material, batch: str | None) -> list[Point]:
    found = []
    keys = ("ssim", "ssim_interval") if material.content.pictures else (material.metric, "interval")
    for arm in material.arms:
        model = material.model(arm)
        score = model[keys[0]]
        interval = model.get(keys[1]) or (score, score)
        spread = None
        if batch is None:
            cost = model.get("parameters")
        else:
            times = material.latency(arm, batch)
            cost = times and times["median_ms"]
            spread = None if times is None else (times["low_ms"], times["high_ms"])
        if cost:
            found.append(Point(arm, float(cost), score, (interval[0], interval[1]), spread))
    return found


def classes(material: Material) -> str:
    """Where the student gained and where it lost, class by class."""
    rows = sorted(material.content.differences, key=lambda row: row.control - row.student)
    if not rows:
        return ""
    left_out = len(rows) - CLASSES_SHOWN
    if left_out > 0:
        rows = rows[: CLASSES_SHOWN // 2] + rows[-CLASSES_SHOWN // 2 :]
    ends = [end for row in rows for end in (*row.interval, 0.0)]
    span = (min(ends), max(ends))
    body = "".join(_class_row(row, span) for row in rows)
    table = (
        '<table class="classes"><thead><tr><th scope="col">Class</th>'
        '<th scope="col" class="num before">Control</th>'
        '<th scope="col" class="num">Student</th>'
        '<th scope="col" class="wide">Difference, 95&nbsp;% interval</th>'
        f'<th scope="col" class="num">Points</th></tr></thead><tbody>{body}</tbody></table>'
    )
    lead = (
        f"{material.metric_title} by class, the greatest gain first. Marks are filled where "
        "the interval does not hold 0; of twenty classes without any effect one would stand out by chance."
    )
    if left_out > 0:
        lead += f" {CLASSES_SHOWN // 2} classes from either end are shown, {left_out} between them are not."
    return section("classes", "Where it improved", table, lead)


def _class_row(row: ClassDifference, span: tuple[float, float]) -> str:
    gain = row.student - row.control
    low, high = row.interval
    kind = "up" if low > 0 else "down" if high < 0 else "even"
    title = f"{row.samples:,} test samples, {interval_points(row.interval, 1)} points"
    return (
        f'<tr title="{escape(title)}"><th scope="row">{escape(row.name)}</th>'
        f'<td class="num before">{percent(row.control, 1)}</td><td class="num">{percent(row.student, 1)}</td>'
        f'<td class="wide">{interval_track(gain, row.interval, span, kind)}</td>'
        f'<td class="num"><b>{points(gain, 1)}</b></td></tr>'
    )


def calibration(material: Material) -> str:
    """One reliability diagram an arm."""
    figures = ""
    for arm in material.arms:
        detail = material.content.details.get(arm)
        if detail is None or not detail.bins:
            continue
        error = material.model(arm).get("ece")
        small = "" if error is None else f"<small>calibration error {percent(error)}</small>"
        figures += f"<figure><h3>{arm.capitalize()} {small}</h3>{reliability(arm, detail.bins)}</figure>"
    lead = (
        "How often an answer is right, against how sure the network is. On the dashed line confidence can be "
        "taken at its word; red shows by how much a network is too sure. Faint bars hold few answers."
    )
    return (
        section("calibration", "Calibration", f'<div class="triple">{figures}</div>', lead) if figures else ""
    )
