"""The page of a comparison: who gained, how surely, at what cost, and how far to trust the order."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from potstill.errors import UserError
from potstill.files import write_text
from potstill.report._comparison_figures import cost_figure, learning_figures
from potstill.report._details import provenance_text
from potstill.report._format import bytes_text, interval_points, milliseconds, percent, points
from potstill.report._headline import interval_track
from potstill.report._material import section
from potstill.report.page import document

__all__ = ["render_comparison"]

Data = Mapping[str, Any]

CHANCE = 0.025  # that a 95 % interval lies above 0 by chance


def render_comparison(folder: Path) -> Path:
    """Draw ``comparison.html`` from ``comparison.json``.

    Args:
        folder: The folder of the comparison.

    Returns:
        Path of the page.

    Raises:
        UserError: If the file is missing or is no comparison, or the page cannot be written.
    """
    source, path = folder / "comparison.json", folder / "comparison.html"
    try:
        data = json.loads(source.read_text(encoding="utf-8"))
        page = _page(data)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(str(source), f"expected a comparison, cannot read it: {error}") from error
    write_text(path, page)
    return path


def _page(data: Data) -> str:
    sections = (
        _set_up(data),
        _standings(data),
        section("trust", "The order", f'<div class="prose"><p>{escape(_trust(data))}</p></div>'),
        _learning(data),
        _cost(data),
        _failures(data),
        section("recipe", "Do it again", provenance_text(data["recipe"], data["environment"]), _again(data)),
    )
    body = f'<div class="hero"><h1>{escape(data["title"])}</h1>{_headline(data)}</div>{"".join(sections)}'
    return document(f"{len(data['methods'])} methods: {data['title']}", "comparison", body)


def _done(data: Data) -> list[Data]:
    return [row for row in data["methods"] if row["status"] == "done"]


def _headline(data: Data) -> str:
    done = _done(data)
    if not done:
        return '<p class="verdict">No method could be trained.</p>'
    best = done[0]
    link = f"<strong>{escape(best['method'])}</strong>"
    amount = f"{points(best['gain'])} points"
    if len(data["seeds"]) < 2:
        return (
            f'<p class="verdict">{link} gained most: {amount} of {escape(data["metric"])}.</p>'
            f'<p class="reason">{escape(best["reason"])}.</p>'
        )
    better, worse = (sum(row["verdict"] == word for row in done) for word in ("better", "worse"))
    return (
        f'<p class="verdict"><em>{better} of {len(done)}</em> methods are better than the control; '
        f"{link} gained most: {amount}.</p>"
        f'<p class="reason">{worse or "None"} worse, {len(done) - better - worse} not to be told apart. '
        f"{_luck(len(done))}</p>"
    )


def _luck(count: int) -> str:
    if count < 2:
        return ""
    share = percent(1 - (1 - CHANCE) ** count, 0)
    return (
        f"Had none of {count} methods any effect, one or more would still come out better by chance in up to "
        f"about {share} of such tables, and the luckiest of many looks better than it is: confirm a winner "
        "on fresh seeds."
    )


def _set_up(data: Data) -> str:
    control, seeds = data["control"], len(data["seeds"])
    chosen = "the last step's" if data["selected"] == "last" else "the best epoch's by validation"
    text = (
        f"Every row is the same student with the same initial weights, trained for {control['steps']:,} "
        "steps on the same batches in the same order and under the same augmentation, beside the same "
        "frozen teacher; "
        f"only what it imitates differs. {seeds} seed(s) draw new initial weights and a new order for all. "
        "The control learns from the labels alone. Scores are of "
        f"{chosen} weights on {data['test_samples']:,} test samples; nothing was chosen by them. The teacher "
        f"reaches {percent(data['teacher']['test'])} there."
    )
    jobs = data["environment"].get("jobs", 1)
    if jobs > 1:
        text += (
            f" {jobs} cells were trained at once, each with one thread; times a step are as they were then."
        )
    return section("set-up", "How it was done", f'<div class="prose"><p>{escape(text)}</p></div>')


def _standings(data: Data) -> str:
    done = _done(data)
    ends = [end for row in done for end in (*row["interval"], row["gain"], 0.0)] or [0.0]
    span = (min(ends), max(ends))
    rows = "".join(_row(row, span) for row in done) + _row(data["control"], span)
    metric = escape(data["metric"]).capitalize()
    table = (
        '<div class="scroll"><table class="standings"><thead><tr><th scope="col">Method</th>'
        f'<th scope="col" class="num">{metric}</th><th scope="col" class="num">Spread</th>'
        '<th scope="col" class="wide">Gain, 95&nbsp;% interval</th><th scope="col" class="num">Points</th>'
        '<th scope="col">Verdict</th><th scope="col" class="num">A step</th>'
        f'<th scope="col" class="num">Memory</th><th scope="col">Seeds</th></tr></thead><tbody>{rows}</tbody>'
        "</table></div>"
    )
    lead = (
        "The greatest gain first. The interval of a gain is paired: it compares seed with seed and "
        "sample with sample. Marks are filled where it does not hold 0. Spread is the standard deviation "
        "between seeds, in points. A method's name leads to its report, a seed to the log of its training."
    )
    return section("standings", "Methods", table, lead)


def _row(row: Data, span: tuple[float, float]) -> str:
    name = escape(row["method"])
    named = f'<a href="{escape(row["report"])}">{name}</a>' if row["report"] else name
    seeds = " ".join(
        f'<a href="{escape(cell["metrics"])}" title="{percent(score)}">{cell["seed"]}</a>'
        for cell, score in zip(row["cells"], row["per_seed"], strict=True)
    )
    spread = "–" if row["spread"] is None else f"{row['spread'] * 100:.2f}"
    track, gain, title = "", "", ""
    if row["gain"] is not None:
        low, high = row["interval"]
        kind = "up" if low > 0 else "down" if high < 0 else "even"
        track = interval_track(row["gain"], (low, high), span, kind)
        gain, title = points(row["gain"]), f"{interval_points((low, high))} points"
    return (
        f'<tr title="{escape(title)}"><th scope="row">{named}</th><td class="num">{percent(row["mean"])}</td>'
        f'<td class="num">{spread}</td><td class="wide">{track}</td><td class="num"><b>{gain}</b></td>'
        f"<td>{escape(row['verdict'] or '')}</td>"
        f'<td class="num">{milliseconds(row["seconds_per_step"] * 1e3)}</td>'
        f'<td class="num">{bytes_text(row["peak_memory_bytes"])}</td><td>{seeds}</td></tr>'
    )


def _trust(data: Data) -> str:
    return str(data["ranking"]["words"])


def _learning(data: Data) -> str:
    figures = learning_figures([row["method"] for row in _done(data)], data["histories"], data["metric"])
    if not figures:
        return ""
    lead = (
        f"Validation {escape(data['metric'])} after each epoch, all on one scale: the method drawn through, "
        "the control dashed; bands go from the lowest seed to the highest."
    )
    return section("learning", "Learning", f'<div class="triple">{figures}</div>', lead)


def _cost(data: Data) -> str:
    rows = [row for row in _done(data) if math.isfinite(row["seconds_per_step"])]
    if not rows:
        return ""
    lead = (
        "Gain against the time of one training step, whiskers are 95&nbsp;% intervals; up and to the left is "
        "better. Named are those that no other method beats in both; point at the others for theirs."
    )
    figure = f"<figure>{cost_figure(rows, data['control']['seconds_per_step'])}</figure>"
    return section("cost", "What a gain costs", figure, lead)


def _failures(data: Data) -> str:
    failed: Sequence[Data] = [row for row in data["methods"] if row["status"] == "failed"]
    if not failed:
        return ""
    rows = "".join(
        f'<tr><th scope="row">{escape(row["method"])}</th><td>{escape(row["reason"])}</td></tr>'
        for row in failed
    )
    table = f'<div class="scroll"><table class="plain"><tbody>{rows}</tbody></table></div>'
    return section(
        "failed", "What failed", table, "These could not be trained; they are no part of the order."
    )


def _again(data: Data) -> str:
    command = escape(str(data["environment"].get("command", "")))
    return f"Made by <code>{command}</code>. The recipe is what all cells have in common."
