"""The top of the page: the verdict in one sentence, the facts, how it was measured, the table of arms."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from html import escape

from potstill.metrics.quality import SCALELESS
from potstill.report._format import (
    bytes_text,
    compact,
    milliseconds,
    percent,
    ratio,
)
from potstill.report._material import Material, section

__all__ = ["arms_table", "headline", "interval_track", "set_up"]


def headline(material: Material) -> str:
    """Title, verdict, gain with its interval, and four facts."""
    verdict = material.result.get("verdict")
    reason = str(material.result.get("reason") or "").rstrip(".")
    notes = "".join(f"<li>{escape(note[:1].upper() + note[1:])}</li>" for note in material.content.notes)
    return (
        f'<div class="hero {verdict or "open"}"><h1>{escape(material.content.title)}</h1>'
        f'<p class="verdict">{_sentence(material)}</p>'
        f'<p class="reason">{escape(reason[:1].upper() + reason[1:])}.</p>'
        f"{_gauge(material)}{_facts(material)}"
        + (f'<aside class="notes" aria-label="Notes"><ul>{notes}</ul></aside>' if notes else "")
        + "</div>"
    )


def _sentence(material: Material) -> str:
    result = material.result
    metric = escape(material.metric_name)
    if result.get("verdict") is None:
        return (
            f"The student reaches {material.written(material.score('student'))} {metric}; "
            "without a control there is no verdict."
        )
    gain = float(result["gain"])
    of = "" if material.gain_unit == material.metric_name else f" of {metric}"
    amount = f"<strong>{material.gained(gain)} {material.gain_unit}</strong>{of}"
    if result["verdict"] == "better":
        return f"Distillation made the student <em>better</em>: {amount} over its control."
    if result["verdict"] == "worse":
        return f"Distillation made the student <em>worse</em>: {amount} against its control."
    return f"Student and control are the <em>same</em> as far as this run can tell: {amount}."


def interval_track(value: float, interval: tuple[float, float], span: tuple[float, float], kind: str) -> str:
    """A value with its interval on a line from ``span[0]`` to ``span[1]``, with a mark at 0."""

    def place(at: float) -> float:
        return 100 * (min(max(at, span[0]), span[1]) - span[0]) / ((span[1] - span[0]) or 1.0)

    low, high = place(interval[0]), place(interval[1])
    return (
        f'<span class="track {kind}" aria-hidden="true"><i class="zero" style="left:{place(0):.2f}%"></i>'
        f'<i class="range" style="left:{low:.2f}%;width:{high - low:.2f}%"></i>'
        f'<i class="at" style="left:{place(value):.2f}%"></i></span>'
    )


def _gauge(material: Material) -> str:
    result = material.result
    if result.get("verdict") is None:
        return ""
    gain, interval = float(result["gain"]), (float(result["interval"][0]), float(result["interval"][1]))
    reach = max(abs(interval[0]), abs(interval[1]), 1e-4) * 1.15
    span = (min(interval[0] * 1.3, -0.25 * reach), max(interval[1] * 1.15, 0.25 * reach))
    zero = -span[0] / (span[1] - span[0]) * 100
    return (
        f'<figure class="gauge">{interval_track(gain, interval, span, "large")}'
        f'<span class="zero-name" style="left:{zero:.2f}%">control</span>'
        f"<figcaption>Gain {material.gained(gain)} {material.gain_unit}, 95&nbsp;% interval "
        f"{material.gained(interval[0])} to {material.gained(interval[1])}</figcaption></figure>"
    )


def _facts(material: Material) -> str:
    facts = [
        (material.written(material.score("student"), 1), f"{escape(material.metric_name)} of the student")
    ]
    if "teacher" not in material.arms:
        if "control" in material.arms:
            score = material.written(material.score("control"), 1)
            facts.append((score, f"{escape(material.metric_name)} of the control"))
        return _listed(facts)
    teacher, student = material.model("teacher"), material.model("student")
    kept = material.score("student") / max(material.score("teacher"), 1e-9)
    metric = escape(material.metric_name)
    if material.shares:
        facts.append((percent(kept, 1), f"of the teacher's {metric} kept"))
    elif material.metric in SCALELESS:  # near 0 a ratio says nothing
        facts.append((material.written(material.score("teacher")), f"{metric} of the teacher"))
    elif material.content.pictures:  # a teacher may be the reference itself, at no error
        facts.append((f"{student['ssim']:.3f}", "structural similarity"))
    else:
        facts.append((ratio(kept), f"the teacher's {metric}"))
    for key, less, more in (
        ("parameters", "fewer parameters", "the teacher's parameters"),
        ("macs", "fewer multiply-adds", "the teacher's multiply-adds"),
    ):
        if teacher.get(key) and student.get(key):
            factor = teacher[key] / student[key]
            facts.append((ratio(factor), less) if factor >= 1 else (ratio(1 / factor), more))
    times = [material.latency(arm, "1") for arm in ("teacher", "student")]
    if times[0] is not None and times[1] is not None:
        factor = times[0]["median_ms"] / times[1]["median_ms"]
        facts.append(
            (ratio(factor), f"faster on one {material.sample}")
            if factor >= 1
            else (ratio(1 / factor), f"slower on one {material.sample}")
        )
    return _listed(facts)


def _listed(facts: Sequence[tuple[str, str]]) -> str:
    return '<dl class="facts">' + "".join(f"<div><dt>{b}</dt><dd>{a}</dd></div>" for a, b in facts) + "</dl>"


def set_up(material: Material) -> str:
    """What the teacher saw, what the student saw, what is measured on what."""
    text = "".join(f"<p>{escape(paragraph)}</p>" for paragraph in material.content.setup)
    return section("set-up", "How it was done", f'<div class="prose">{text}</div>') if text else ""


Cell = Callable[[str], str]


def _but(material: Material) -> str:
    exits = material.result.get("early_exit") or {}
    chosen_by_test = exits.get("calibration", {}).get("part") == "test"
    return (
        ", but for the thresholds of the early exits, which change no figure here" if chosen_by_test else ""
    )


def arms_table(material: Material) -> str:
    """One column an arm, one row a measure."""
    heads = "".join(
        f'<th scope="col"><span class="key {arm}"></span>{arm.capitalize()}'
        f"<small>{escape(_model_name(material, arm))}</small></th>"
        for arm in material.arms
    )
    body = ""
    for group, rows in _groups(material):
        lines = ""
        for label, hint, cell in rows:
            cells = [cell(arm) for arm in material.arms]
            if all(not text for text in cells):
                continue
            small = f"<small>{hint}</small>" if hint else ""
            lines += f'<tr><th scope="row">{label}{small}</th>' + "".join(
                f"<td>{text or '<span class=none>–</span>'}</td>" for text in cells
            )
            lines += "</tr>"
        if lines:
            head = f'<th colspan="{len(material.arms) + 1}" scope="colgroup">{group}</th>'
            body += f'<tbody><tr class="group">{head}</tr>{lines}</tbody>'
    count = material.result.get("test_samples")
    clean = f"nothing was trained on them or chosen by them{_but(material)}"
    lead = f"Measured on {int(count):,} test samples; {clean}." if count else ""
    table = f'<table class="arms"><thead><tr><td></td>{heads}</tr></thead>{body}</table>'
    return section("arms", "The arms", table, lead)


def _model_name(material: Material, arm: str) -> str:
    spec = material.content.models.get("student" if arm == "control" else arm, "")
    return spec.rpartition(":")[2]


def _groups(material: Material) -> Iterator[tuple[str, Sequence[tuple[str, str, Cell]]]]:
    def value(key: str, write: Callable[[float], str]) -> Cell:
        return lambda arm: "" if material.model(arm).get(key) is None else write(material.model(arm)[key])

    yield (
        f"{material.metric_title} on the test part",
        [
            (
                "Mean over seeds" if material.num_seeds > 1 else "One seed",
                "with 95&nbsp;% interval",
                lambda arm: _metric(material, arm),
            ),
            ("Each seed", "", lambda arm: _per_seed(material, arm)),
            ("Last epoch", _chosen(material, "last"), value("last", material.written)),
            ("Best epoch", _chosen(material, "best"), value("best", material.written)),
        ],
    )
    yield "Average precision of boxes", list(_boxes(material))
    yield (
        "Size",
        [
            ("Parameters", "", value("parameters", compact)),
            ("Multiply-adds", f"one {material.sample}", value("macs", compact)),
            ("Weights", "on disk", value("bytes", bytes_text)),
        ],
    )
    yield (
        "Time, median",
        [
            (f"One {material.sample}", "10th to 90th percentile", lambda arm: _latency(material, arm, "1")),
            ("Batch of 64", "10th to 90th percentile", lambda arm: _latency(material, arm, "64")),
        ],
    )
    yield (
        "Beside the teacher" if material.result["task"] == "detection" else "Quality of the probabilities",
        [
            ("Calibration error", "0 is best", value("ece", percent)),
            ("Same answer as teacher", "", value("agreement", percent)),
            ("Accepted as draft", "1 less the total variation", value("acceptance", percent)),
            (
                "Divergence from teacher",
                "KL, in nats",
                value("kl_to_teacher", lambda number: f"{number:.3f}"),
            ),
        ],
    )


def _boxes(material: Material) -> Iterator[tuple[str, str, Cell]]:
    """Rows of a detector: by overlap, and by size of the objects."""
    half = partial(_of_overlap, material, "map50", "bootstrap50")
    yield "At an overlap of 0.5", "interval by bootstrap over images", half
    yield "At an overlap of 0.75", "", partial(_of_overlap, material, "map75", None)
    sizes = (("small", "below 32² pixels"), ("medium", "32² to 96²"), ("large", "above"))
    for size, hint in sizes:
        yield f"{size.capitalize()} objects", hint, partial(_of_size, material, size)


def _of_overlap(material: Material, key: str, interval: str | None, arm: str) -> str:
    figures = material.model(arm)
    ends = figures.get(interval) if interval else None
    small = f"<small>{percent(ends[0], 1)} to {percent(ends[1], 1)}</small>" if ends else ""
    return _share(figures.get(key)) + small


def _of_size(material: Material, size: str, arm: str) -> str:
    return _share((material.model(arm).get("by_size") or {}).get(size))


def _share(value: float | None) -> str:
    return "" if value is None else percent(value)


def _chosen(material: Material, which: str) -> str:
    chosen = "counted here" if material.result.get("selected") == which else ""
    return ", ".join(part for part in ("by validation" if which == "best" else "", chosen) if part)


def _metric(material: Material, arm: str) -> str:
    interval = material.model(arm).get("interval")
    small = (
        ""
        if interval is None
        else f"<small>{material.written(interval[0], 1)} to {material.written(interval[1], 1)}</small>"
    )
    return f"<b>{material.written(material.score(arm))}</b>{small}"


def _per_seed(material: Material, arm: str) -> str:
    seeds = material.model(arm).get("per_seed") or []
    return "<br>".join(material.written(value) for value in seeds) if len(seeds) > 1 else ""


def _latency(material: Material, arm: str, batch: str) -> str:
    times = material.latency(arm, batch)
    if times is None:
        return ""
    low, high = (f"{times[key]:.3g}" for key in ("low_ms", "high_ms"))
    return f"{milliseconds(times['median_ms'])}<small>{low} to {high}</small>"
