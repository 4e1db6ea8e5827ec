"""What a detector finds: test images as the labels and each arm see them."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from potstill.report._format import percent
from potstill.report._material import Material, section
from potstill.report.scenes import COLOURS, ClassCount, Glimpse, Scene, ShownBox

__all__ = ["scenes"]

LEGEND = (
    ("right", "found"),
    ("gained", "found, and missed by the control"),
    ("missed", "missed"),
    ("wrong", "of no object"),
)


def scenes(material: Material) -> str:
    """Test images as the labels and each arm see them, and what only one of the arms found."""
    found = material.content.detected
    if found is None or not found.scenes:
        return ""
    sure = ", ".join(f"{value:.2f} for the {escape(arm)}" for arm, value in found.sure.items())
    lead = (
        f"Boxes from the score on at which a network's F1 is best ({sure}), matched with true boxes of their "
        "class that they overlap by half. Images are picked by a rule, not by hand; one seed is shown."
    )
    body = _counts(found.counts, material.arms) + _legend(material, found.counts)
    body += "".join(_scene(material, number, scene) for number, scene in enumerate(found.scenes))
    return section("scenes", "What it finds", body + _glimpses(material, found.glimpses), lead)


def _colour(label: int) -> str:
    return COLOURS[label % len(COLOURS)]


def _counts(counts: Sequence[ClassCount], arms: Sequence[str]) -> str:
    heads = "".join(
        f'<th scope="col" class="num"><span class="key {arm}"></span>{arm.capitalize()}</th>' for arm in arms
    )
    compared = any(row.gained is not None for row in counts)
    more = '<th scope="col" class="num">Only student</th><th scope="col" class="num">Only control</th>'
    lines = "".join(_count_row(row, arms, compared) for row in counts)
    return (
        f'<div class="scroll"><table class="plain"><thead><tr><th scope="col">Class</th>'
        f'<th scope="col" class="num">Objects</th>{heads}{more if compared else ""}</tr></thead>'
        f"<tbody>{lines}</tbody></table></div>"
    )


def _count_row(row: ClassCount, arms: Sequence[str], compared: bool) -> str:
    cells = "".join(
        f'<td class="num"><b>{percent(row.found[arm] / row.objects, 1)}</b>'
        f"<small class=below>{row.wrong[arm]:,.0f} wrong</small></td>"
        for arm in arms
    )
    if compared:
        cells += f'<td class="num">{row.gained or 0:,.0f}</td><td class="num">{row.lost or 0:,.0f}</td>'
    return f'<tr><th scope="row">{escape(row.name)}</th><td class="num">{row.objects:,}</td>{cells}</tr>'


def _legend(material: Material, counts: Sequence[ClassCount]) -> str:
    names = material.content.class_names
    shown = [row.name for row in counts]
    classes = "".join(
        f"<span>{_sample('true', label)}{escape(name)}</span>"
        for label, name in enumerate(names)
        if name in shown
    )
    kinds = "".join(
        f"<span>{_sample(kind, 0)}{text}</span>"
        for kind, text in LEGEND
        if kind != "gained" or "control" in material.arms
    )
    return f'<div class="lines">{classes}</div><div class="lines">{kinds}</div>'


def _sample(kind: str, label: int) -> str:
    box = ShownBox(corners=(2, 2, 20, 12), label=label, kind=kind)
    return f'<svg viewBox="0 0 22 14" class="scene">{_drawn(box)}</svg>'


def _scene(material: Material, number: int, scene: Scene) -> str:
    width, height = scene.size
    panels = ""
    for place, name in enumerate(["truth", *material.arms]):
        picture = f'<use href="#scene-{number}"/>'
        if place == 0:
            size = f'width="{width}" height="{height}"'
            picture = f'<image id="scene-{number}" href="{escape(scene.image)}" {size}/>'
        boxes = scene.boxes.get(name, ())
        drawn = "".join(_drawn(box, material.content.class_names) for box in boxes)
        panels += (
            f'<figure><svg class="scene" viewBox="0 0 {width} {height}" role="img" '
            f'aria-label="test image {scene.index}, {escape(name)}">{picture}{drawn}</svg>'
            f"<figcaption>{_caption(name, boxes)}</figcaption></figure>"
        )
    why = f"{escape(scene.why)} <small>test image {scene.index}</small>"
    return f'<h4>{why}</h4><div class="panels">{panels}</div>'


def _caption(name: str, boxes: Sequence[ShownBox]) -> str:
    if name == "truth":
        return f"Labels <small>{len(boxes)} objects</small>"
    kinds = [box.kind for box in boxes]
    right = kinds.count("right") + kinds.count("gained")
    text = f"{right} of {right + kinds.count('missed')}, {kinds.count('wrong')} wrong"
    if "gained" in kinds:
        text += f", {kinds.count('gained')} gained"
    return f'<span class="key {name}"></span>{name.capitalize()} <small>{text}</small>'


def _drawn(box: ShownBox, names: Sequence[str] = ()) -> str:
    """A box as a path; one that is of no object is crossed."""
    left, top, right, bottom = box.corners
    path = f"M{left:g} {top:g}H{right:g}V{bottom:g}H{left:g}Z"
    if box.kind == "wrong":
        path += f"L{right:g} {bottom:g}"
    score = "" if box.score is None else f" {box.score:.2f}"
    title = f"<title>{escape(names[box.label])}{score}, {box.kind}</title>" if names else ""
    return f'<path class="box {box.kind}" style="--box:{_colour(box.label)}" d="{path}">{title}</path>'


def _glimpses(material: Material, glimpses: Sequence[Glimpse]) -> str:
    body = ""
    for gained, title in ((True, "Found by the student alone"), (False, "Found by the control alone")):
        shown = "".join(_glimpse(material, one) for one in glimpses if one.gained == gained)
        if shown:
            body += f"<h4>{title} <small>classes in turn, the surest first</small></h4>"
            body += f'<div class="thumbs">{shown}</div>'
    return body


def _glimpse(material: Material, one: Glimpse) -> str:
    name = escape(material.content.class_names[one.label])
    return (
        f'<figure><img src="{escape(one.image)}" width="76" height="76" alt="{name}">'
        f"<figcaption>{name} <small>{one.score:.2f}</small></figcaption></figure>"
    )
