"""The section of generators: what each makes of the same images, where it is wrong, and by how much."""

from __future__ import annotations

from html import escape

from potstill.report._headline import interval_track
from potstill.report._material import Material, section
from potstill.report.samples import PictureRow

__all__ = ["pictures", "sheets"]

MEASURES = {
    "psnr": ("Signal to noise", "PSNR in dB, higher is better", 1.0, 2),
    "ssim": ("Structure", "SSIM, 1 is equal", 1.0, 4),
    "perceptual": ("Perceptual distance", "by {features}, 0 is equal", 1.0, 4),
    "kid": ("Kernel distance", "KID by {features}, times 1000", 1000.0, 2),
}
"""What is told of each measure: name, how to read it, factor, decimal places."""


def pictures(material: Material) -> str:
    """Measures with their gains, then input, truth, arms and their differences side by side."""
    rows = material.content.pictures
    if not rows:
        return ""
    reference = (
        "the true image" if "truth" in rows[0].images else "the teacher's image, which is the reference"
    )
    lead = (
        "Test images by rank: from the one on which the student did worst to the one on which it did best; "
        f"nobody picked them. Below each answer is how far it is from {reference}, pixel by pixel; dark is "
        "equal, and both arms of a row share one scale. Point at an image to choose where the zoom looks."
    )
    slider = (
        '<label class="zoom">Zoom <input type="range" id="zoom" min="1" max="8" step="0.5" value="1"></label>'
    )
    body = _measures(material) + slider + "".join(_row(material, row) for row in rows)
    return section("pictures", "What they make of images", body, lead)


def _row(material: Material, row: PictureRow) -> str:
    names = list(row.images)
    cells = "".join(_cell(row.images[name], name, _caption(material, row, name)) for name in names)
    apart = "".join(
        f'<figure style="grid-column:{names.index(arm) + 1}">'
        f"{_view(row.differences[arm], f'differences of the {arm}')}</figure>"
        for arm in names
        if arm in row.differences
    )
    scale = (
        '<p class="scale"><i aria-hidden="true"></i>'
        f"difference from 0 to {255 * row.brightest:.0f} of 255</p>"
    )
    return (
        f'<h3 class="part">{escape(row.why)}</h3><div class="scroll"><div class="panes" '
        f'style="--columns:{len(names)}">{cells}{scale}{apart}</div></div>'
    )


def _cell(image: str, name: str, caption: str) -> str:
    return f"<figure>{_view(image, name)}<figcaption>{caption}</figcaption></figure>"


def _view(image: str, name: str) -> str:
    return f'<div class="view"><img src="{escape(image)}" alt="{escape(name)}"></div>'


def _caption(material: Material, row: PictureRow, name: str) -> str:
    value = f" {material.written(row.values[name])} {material.gain_unit}" if name in row.values else ""
    key = f'<span class="key {escape(name)}"></span>' if name in material.arms else ""
    return f"{key}{escape(name.capitalize())}{value}"


def _measures(material: Material) -> str:
    """One row a measure: control, student, and the gain with its interval."""
    gains = {**material.result.get("gains", {})}
    if material.result.get("verdict") is None:
        return ""
    gains[material.metric] = {key: material.result[key] for key in ("gain", "interval", "verdict")}
    lines = "".join(_measure(material, name, gains[name]) for name in MEASURES if name in gains)
    heads = "".join(f'<th scope="col">{head}</th>' for head in ("Measure", "Control", "Student", "Gain"))
    return (
        '<div class="scroll"><table class="plain measures"><thead><tr>'
        f'{heads}<th scope="col" class="wide">95&nbsp;% interval</th></tr></thead>'
        f"<tbody>{lines}</tbody></table></div>"
    )


def _measure(material: Material, name: str, gain: dict[str, object]) -> str:
    title, how, factor, digits = MEASURES[name]
    features = escape(str(material.model("student").get("features", "")))
    low, high = (factor * float(value) for value in gain["interval"])  # type: ignore[attr-defined]
    value, reach = factor * float(str(gain["gain"])), 1.1 * max(abs(low), abs(high), 1e-9)
    kind = {"better": "up", "worse": "down"}.get(str(gain["verdict"]), "even")
    cells = "".join(
        f"<td>{factor * material.model(arm)[name]:.{digits}f}</td>" for arm in ("control", "student")
    )
    return (
        f'<tr><th scope="row">{title}<small>{how.format(features=features)}</small></th>{cells}'
        f"<td>{_signed(value, digits)}</td><td>{interval_track(value, (low, high), (-reach, reach), kind)}"
        f"<small>{_signed(low, digits)} to {_signed(high, digits)}, {escape(str(gain['verdict']))}</small>"
        "</td></tr>"
    )


def _signed(value: float, digits: int) -> str:
    return f"{value:+.{digits}f}".replace("-", "\u2212")


def sheets(material: Material) -> str:
    """Real images, then what each generator makes of the same noise, and on the way between two noises."""
    found = material.content.sheets
    if not found:
        return ""
    features = escape(str(material.model("student").get("features", "")))
    lead = (
        "The same place shows the same noise in every arm; the real images have nothing to do with it. They "
        f"are the first of the test part; nobody picked them. KID is measured by the features of {features} "
        "and is no FID; 0 is as near as other real images."
    )
    whole = "".join(_sheet(material, sheet.name, sheet.images) for sheet in found)
    strips = "".join(_sheet(material, sheet.name, sheet.between) for sheet in found if sheet.between)
    walk = f'<h3 class="part">From one noise to another</h3>{strips}' if strips else ""
    return section("sheets", "What they make of noise", whole + walk, lead)


def _sheet(material: Material, name: str, image: str) -> str:
    known = name in material.arms
    value = f" {material.written(material.score(name))} KID" if known else ""
    key = f'<span class="key {escape(name)}"></span>' if known else ""
    return (
        f'<figure class="sheet"><figcaption>{key}{escape(name.capitalize())}{value}</figcaption>'
        f'<img class="wide" src="{escape(image)}" alt="images: {escape(name)}"></figure>'
    )
