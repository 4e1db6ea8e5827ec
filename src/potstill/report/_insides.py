"""The section on how alike the layers of student and teacher are."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from potstill.report._material import Material, section

__all__ = ["insides"]

TITLES = {
    "hidden": "Hidden states",
    "attention": "Attention to the same tokens",
}


def insides(material: Material) -> str:
    """A field of shades a network and kind: its layers downwards, the teacher's to the right."""
    found = material.content.insides
    if not found:
        return ""
    figures = "".join(
        f'<figure><h3><span class="key {escape(arm)}"></span>{title}, {escape(arm)}</h3>'
        f"{_field(alike[name], arm)}</figure>"
        for name, title in TITLES.items()
        for arm, alike in found.items()
        if alike.get(name)
    )
    lead = (
        "Each row is a layer of the network, each column one of the teacher's, on some texts of the test "
        "part; the darker, the more alike. Hidden states by linear centred kernel alignment over tokens, "
        "without bias (1: the same up to rotation and scale, 0: unrelated); attention, averaged over heads, "
        "by the share that goes to the same tokens."
    )
    return section("insides", "Layer by layer", f'<div class="pair">{figures}</div>', lead)


def _field(rows: Sequence[Sequence[float]], arm: str) -> str:
    """A table of shades; each cell says its value where it is wide enough, and in its title."""
    wide = len(rows[0]) <= 12
    head = "".join(f'<th scope="col">{place}</th>' for place in range(1, len(rows[0]) + 1))
    body = ""
    for number, row in enumerate(rows, start=1):
        best = max(range(len(row)), key=row.__getitem__)
        cells = "".join(
            f'<td class="{escape(arm)}{" best" if place == best else ""}" '
            f'title="layer {number} with {place + 1} of the teacher: {value:.3f}">'
            f'<i style="opacity:{min(max(value, 0.0), 1.0):.2f}"></i>{f"{value:.2f}" if wide else ""}</td>'
            for place, value in enumerate(row)
        )
        body += f'<tr><th scope="row">{number}</th>{cells}</tr>'
    return (
        f'<div class="scroll"><table class="field"><thead><tr><th></th>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )
