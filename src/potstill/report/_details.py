"""The sections without charts: dark knowledge, views, what was matched, recipe and environment."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape

from potstill.report._format import seconds_text, share_text
from potstill.report._material import Material, section
from potstill.report.samples import Answer, Guess, Sample

__all__ = ["dark_knowledge", "matched", "provenance", "provenance_text", "views"]


def dark_knowledge(material: Material) -> str:
    """A few test samples with what each arm answers, plain and softened."""
    samples = material.content.samples
    if not samples:
        return ""
    temperature = f"{material.content.temperature:g}"
    cards = "".join(_card(sample, temperature) for sample in samples)
    kind = ("an image", "Images") if samples[0].image else ("a text", "Texts")
    lead = (
        f"Beside its answer a teacher tells which other classes {kind[0]} resembles. Its probabilities at "
        "temperature 1 hide most of that"
    )
    lead += (
        f"; at {temperature}, the training temperature, the student sees it." if temperature != "1" else "."
    )
    lead += (
        f" {kind[1]} are picked by a rule, not by hand: of each kind those over which the teacher hesitates "
        "most. The true class is underlined; one seed is shown."
    )
    return section("dark-knowledge", "Dark knowledge", f'<div class="cards">{cards}</div>', lead)


def _card(sample: Sample, temperature: str) -> str:
    softened = any(answer.soft for answer in sample.answers)
    heads = "<tr><td></td><th scope='col'>T = 1</th>"
    heads += f"<th scope='col'>T = {temperature}</th></tr>" if softened else "</tr>"
    rows = "".join(_answer(answer, sample.label, softened) for answer in sample.answers)
    why = escape(sample.why[:1].upper() + sample.why[1:])
    picture = (
        f'<img src="{escape(sample.image)}" '
        f'alt="test image {sample.index}, {escape(sample.label)}" width="72" height="72">'
    )
    text = f"<blockquote>{escape(sample.text)}</blockquote>"
    return (
        f'<article class="card"><header>{picture if sample.image else ""}'
        f"<div><h3>{escape(sample.label)}</h3><p>{why}</p></div></header>{text if sample.text else ''}"
        f"<table><thead>{heads}</thead><tbody>{rows}</tbody></table></article>"
    )


def _answer(answer: Answer, label: str, softened: bool) -> str:
    cells = f"<td>{_guesses(answer.arm, answer.plain, label)}</td>"
    if softened:
        cells += f"<td>{_guesses(answer.arm, answer.soft, label)}</td>"
    arm = escape(answer.arm)
    return f'<tr><th scope="row"><span class="key {arm}"></span>{arm.capitalize()}</th>{cells}</tr>'


def _guesses(arm: str, guesses: Sequence[Guess], label: str) -> str:
    return "".join(
        f'<div class="guess{" true" if guess.name == label else ""}"><span>{escape(guess.name)}</span>'
        f"<b>{share_text(guess.probability)}</b>"
        f'<i class="{escape(arm)}" style="width:{100 * guess.probability:.1f}%"></i></div>'
        for guess in guesses
    )


def views(material: Material) -> str:
    """Training samples and what the networks saw of them; nothing without augmentation."""
    if material.views is None:
        return ""
    lead = (
        "A training image of some classes in the first column, then its views of the first epochs, as the "
        "student saw them; teacher and student always see the same view. Below each is its target."
    )
    if material.result["task"] == "detection":
        lead = (
            "Training images with their boxes in the first column, then their views of the first epochs, as "
            "the student saw them: boxes move with their image. Teacher and student see the same view."
        )
    source = "data:image/png;base64," + base64.b64encode(material.views).decode("ascii")
    alt = "training images and their augmented views"
    body = f'<div class="scroll"><img class="views" src="{source}" alt="{alt}"></div>'
    return section("views", "What the networks saw", body, lead)


def matched(material: Material) -> str:
    """The terms of the objective and the layer plan."""
    content = material.content
    if not content.terms:
        return ""
    terms = "".join(
        f'<tr><th scope="row">{escape(term.name)}</th><td><code>{escape(term.loss)}</code></td>'
        f'<td class="num">{term.weight:g}</td><td>{escape(term.detail)}</td></tr>'
        for term in content.terms
    )
    body = (
        '<div class="scroll"><table class="plain"><thead><tr>'
        '<th scope="col">Term</th><th scope="col">Loss</th>'
        f'<th scope="col" class="num">Weight</th><th scope="col">Settings</th></tr></thead><tbody>{terms}'
        "</tbody></table></div>"
    )
    if not content.pairs:
        return section("matched", "What was matched", body, "Outputs only; no layers were paired.")
    pairs = "".join(
        f'<tr><th scope="row">{escape(pair.term)}</th><td><code>{escape(pair.student)}</code> '
        f"<small>{_shape(pair.student_shape)}</small></td><td><code>{escape(pair.teacher)}</code> "
        f"<small>{_shape(pair.teacher_shape)}</small></td><td>{escape(pair.adapter or 'none')}</td>"
        f"<td>{escape(pair.reason)}</td></tr>"
        for pair in content.pairs
    )
    body += (
        '<h3>Layer plan</h3><div class="scroll"><table class="plain"><thead><tr><th scope="col">Term</th>'
        '<th scope="col">Student</th><th scope="col">Teacher</th><th scope="col">Adapter</th>'
        f'<th scope="col">Why this pair</th></tr></thead><tbody>{pairs}</tbody></table></div>'
    )
    return section("matched", "What was matched", body)


def _shape(shape: Sequence[int]) -> str:
    return " × ".join(str(size) for size in shape)


def provenance(material: Material) -> str:
    """Recipe and environment, each with a button that copies it."""
    seconds = material.result.get("seconds")
    rate = material.result.get("samples_per_second")
    lead = "This recipe runs again as it stands: save it and give it to <code>potstill run</code>."
    if seconds:
        lead += f" Training took {seconds_text(float(seconds))} in all"
        lead += f", {float(rate):,.0f} samples a second for the student." if rate else "."
    return section("recipe", "Do it again", provenance_text(material.recipe, material.environment), lead)


def provenance_text(recipe: str, environment: Mapping[str, object]) -> str:
    """Recipe and environment as two texts with a button each."""
    rows = "\n".join(_lines("", dict(environment)))
    return _copyable("recipe", "recipe.yaml", recipe) + _copyable("environment", "Environment", rows)


def _lines(prefix: str, value: object) -> list[str]:
    """Nested values as ``key: value`` lines."""
    if isinstance(value, dict):
        return [line for key, inner in value.items() for line in _lines(f"{prefix}.{key}".lstrip("."), inner)]
    if isinstance(value, list):
        value = ", ".join(str(item) for item in value)
    return [f"{prefix}: {value}"]


def _copyable(name: str, title: str, text: str) -> str:
    return (
        f'<div class="copyable"><div class="bar"><h3>{escape(title)}</h3>'
        f'<button type="button" data-copy="text-{name}">Copy</button></div>'
        f'<pre id="text-{name}" tabindex="0">{escape(text.rstrip())}</pre></div>'
    )
