"""The sections of a language model: where it differs from its teacher, what it writes, public benchmarks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from potstill.report._format import bytes_text, compact, percent
from potstill.report._material import Material, section
from potstill.report.content import TokenBin

__all__ = ["benchmarks", "divergences", "generations"]

TITLES = {
    "position": ("By position in the text", "Tokens before it"),
    "frequency": ("By how often the token was seen", "Times in the training text"),
}


def divergences(material: Material) -> str:
    """Divergence from the teacher by position and by frequency, a column an arm."""
    found = material.content.divergences
    if not found:
        return ""
    figures = "".join(
        f"<figure><h3>{title}</h3>{_table(head, found[name])}</figure>"
        for name, (title, head) in TITLES.items()
        if found.get(name)
    )
    lead = (
        "How far the predictions on the test part are from the teacher's, in nats a token, and how often "
        "the likeliest token is the same. A student that uses its context comes closer to it along the "
        "text; rare tokens show what it has no room for."
    )
    return section("tokens", "Where it differs from its teacher", f'<div class="pair">{figures}</div>', lead)


def _table(head: str, arms: Mapping[str, Sequence[TokenBin]]) -> str:
    bins = next(iter(arms.values()))
    highest = max((each.mean for rows in arms.values() for each in rows), default=1.0) or 1.0
    columns = "".join(
        f'<th scope="col"><span class="key {escape(arm)}"></span>{escape(arm.capitalize())}</th>'
        for arm in arms
    )
    lines = ""
    for place, each in enumerate(bins):
        end = bins[place + 1].start - 1 if place + 1 < len(bins) else None
        cells = "".join(
            f'<td><div class="guess"><span>{_same(rows[place])}</span><b>{rows[place].mean:.3f}</b>'
            f'<i class="{escape(arm)}" style="width:{100 * rows[place].mean / highest:.1f}%"></i></div></td>'
            for arm, rows in arms.items()
        )
        head_cell = f'<th scope="row">{_range(each.start, end)}</th>'
        lines += f'<tr>{head_cell}{cells}<td class="num">{each.count:,}</td></tr>'
    return (
        f'<table class="plain"><thead><tr><th scope="col">{head}</th>{columns}'
        f'<th scope="col" class="num">Tokens</th></tr></thead><tbody>{lines}</tbody></table>'
    )


def _same(found: TokenBin) -> str:
    return "" if found.agreement is None else f"{percent(found.agreement, 0)} same"


def _range(start: int, end: int | None) -> str:
    if end is None:
        return f"{start:,} and more"
    return f"{start:,}" if start == end else f"{start:,} to {end:,}"


def generations(material: Material) -> str:
    """What each arm writes after the same beginnings."""
    rows = material.content.generations
    if not rows:
        return ""
    cards = ""
    for row in rows:
        lines = "".join(
            f'<tr><th scope="row"><span class="key {escape(arm)}"></span>{escape(arm.capitalize())}</th>'
            f"<td>{escape(row[arm])}</td></tr>"
            for arm in material.arms
            if arm in row
        )
        table = f"<table><tbody>{lines}</tbody></table>"
        cards += f'<article class="card"><p>{escape(row["prompt"])} …</p>{table}</article>'
    lead = (
        "Each network goes on from the same beginning of a test document, always with its likeliest token; "
        "documents are spread evenly over the part, not picked."
    )
    body = _likeness(material.content.likeness) + _writing(material) + f'<div class="cards">{cards}</div>'
    return section("generations", "What it writes", body, lead)


def _writing(material: Material) -> str:
    """What writing costs each network, and what its drafts are worth to the teacher."""
    found = {arm: material.model(arm)["writing"] for arm in material.arms if "writing" in material.model(arm)}
    if not found:
        return ""
    rows = ""
    for arm, cost in found.items():
        drafts = material.model(arm).get("drafts")
        shown = ["–"] * 3
        if drafts:
            shares = [percent(drafts[name], 1) for name in ("rate", "measured")]
            shown = [*shares, f"{drafts['tokens_a_pass']:.2f}"]
        taken = "".join(f'<td class="num">{each}</td>' for each in shown)
        rows += (
            f'<tr><th scope="row"><span class="key {escape(arm)}"></span>{escape(arm.capitalize())}</th>'
            f'<td class="num">{compact(cost["tokens_per_second"])}</td>'
            f'<td class="num">{bytes_text(cost["peak_bytes"])}</td>{taken}</tr>'
        )
    one = next(iter(found.values()))
    heads = ("Tokens a second", "Peak memory", "Drafts accepted", "Measured", "Tokens a pass of the teacher")
    columns = "".join(f'<th scope="col" class="num">{head}</th>' for head in heads)
    return (
        f"<p>Writing {one['texts']} texts at once with a cache of keys and values, {one['tokens']} tokens "
        f"each after {one['prompt_tokens']}, on {one['threads']} thread(s); memory is that of weights and "
        "tensors. As a draft model for the teacher: the chance that it accepts a token over prefixes that it "
        "sampled itself, and what transformers' assisted generation measured in rounds of four drafts, in "
        "which all that follows a rejection is lost.</p>"
        f'<div class="scroll"><table class="plain"><thead><tr><th scope="col"></th>{columns}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def _likeness(arms: Mapping[str, Mapping[str, Any]]) -> str:
    """How near each arm's answers are to the teacher's, a row an arm."""
    if not arms:
        return ""
    rows = "".join(
        f'<tr><th scope="row"><span class="key {escape(arm)}"></span>{escape(arm.capitalize())}</th>'
        + "".join(
            f'<td class="num">{found[key]:.3f} [{found[f"{key}_interval"][0]:.3f}, '
            f"{found[f'{key}_interval'][1]:.3f}]</td>"
            for key in ("rouge_l", "own_kl")
        )
        + "</tr>"
        for arm, found in arms.items()
    )
    count = next(iter(arms.values()))["prompts"]
    return (
        f"<p>Likeness to the teacher after {count} prompts of the test part, with 95 % intervals over "
        "prompts: ROUGE-L of both likeliest continuations (1 where they are the same), and the divergence "
        "from the teacher, in nats a token, on texts that the network drew itself.</p>"
        '<table class="plain"><thead><tr><th scope="col"></th><th scope="col" class="num">ROUGE-L</th>'
        f'<th scope="col" class="num">Divergence on own texts</th></tr></thead><tbody>{rows}</tbody></table>'
    )


def benchmarks(material: Material) -> str:
    """What lm-evaluation-harness says of each arm, a row a task and metric."""
    found = {arm: material.model(arm)["harness"] for arm in material.arms if "harness" in material.model(arm)}
    if not found:
        return ""
    columns = "".join(
        f'<th scope="col" class="num"><span class="key {escape(arm)}"></span>{escape(arm.capitalize())}</th>'
        for arm in found
    )
    lines = ""
    for task, figures in next(iter(found.values())).items():
        for metric, one in figures.items():
            cells = "".join(f'<td class="num">{_figure(arm[task][metric])}</td>' for arm in found.values())
            samples = "–" if one["samples"] is None else f"{one['samples']:,}"
            head = f'<th scope="row">{escape(task)}</th><td>{escape(metric)}</td>'
            lines += f'<tr>{head}{cells}<td class="num">{samples}</td></tr>'
    lead = (
        "Measured by lm-evaluation-harness after all training, of the first seed's networks, with its own "
        "metrics and standard errors. A difference of less than two standard errors says nothing."
    )
    body = (
        f'<div class="scroll"><table class="plain"><thead><tr><th scope="col">Task</th>'
        f'<th scope="col">Metric</th>{columns}<th scope="col" class="num">Samples</th></tr></thead>'
        f"<tbody>{lines}</tbody></table></div>"
    )
    return section("benchmarks", "Public benchmarks", body, lead)


def _figure(found: Mapping[str, Any]) -> str:
    error = "" if found["error"] is None else f" ± {found['error']:.3g}"
    return f"{found['value']:.4g}{error}"
