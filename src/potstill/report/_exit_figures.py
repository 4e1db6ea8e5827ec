"""The charts of early exits: accuracy against cost, of exits, all kinds of policy and the chosen point."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, Literal

from potstill.report._format import compact, milliseconds, percent
from potstill.report._labels import Label, names
from potstill.report._material import Material
from potstill.report._scales import Frame, fitted

__all__ = ["cost_figures", "legend", "other_name"]

SIZE = (430, 300)
DASHES = ("", "2 4", "7 4", "8 3 2 3")  # the chosen kind of policy is drawn through


@dataclass(frozen=True)
class _Mark:
    """A named point of a chart; ``kind`` decides its colour."""

    kind: str
    name: str
    x: float
    y: float
    spread: tuple[float, float] | None = None
    shape: Literal["disc", "square", "diamond"] = "disc"


def cost_figures(found: Mapping[str, Any], beside: Material | None = None) -> str:
    """Accuracy against milliseconds at batch 1 and against multiply-accumulates, side by side.

    Args:
        found: ``early_exit`` of ``result.json``.
        beside: Another run, whose student and control are drawn too.
    """
    figures = ""
    timed = found["chosen"]["timed"].get("1")
    if timed is not None:
        marks = [
            *_others(beside, lambda arm: arm["latency_ms"]["1"]["median_ms"]),
            _whole(found, timed["whole"]["median_ms"]),
            *_exits(found, "latency_ms"),
            _Mark(
                "student",
                "chosen",
                timed["early"]["median_ms"],
                found["chosen"]["accuracy"],
                (timed["early"]["low_ms"], timed["early"]["high_ms"]),
            ),
        ]
        chart = _chart(found, marks, "latency_ms", "milliseconds for one image", "Accuracy against latency")
        figures += f"<figure><h3>Accuracy against time</h3>{chart}</figure>"
    marks = [
        *_others(beside, lambda arm: arm["macs"]),
        _whole(found, found["chosen"]["whole_macs"]),
        *_exits(found, "macs"),
        _Mark("student", "chosen", found["chosen"]["macs"], found["chosen"]["accuracy"]),
    ]
    chart = _chart(found, marks, "macs", "multiply-accumulates for one image", "Accuracy against operations")
    return figures + f"<figure><h3>Accuracy against operations</h3>{chart}</figure>"


def _exits(found: Mapping[str, Any], cost: str) -> list[_Mark]:
    return [_Mark("other", row["name"], row[cost], row["accuracy"], shape="square") for row in found["exits"]]


def _others(beside: Material | None, cost: Callable[[Mapping[str, Any]], float]) -> list[_Mark]:
    """The student and the control of another run."""
    if beside is None:
        return []
    arms = [arm for arm in ("student", "control") if arm in beside.arms]
    return [
        _Mark("teacher", other_name(beside, arm), cost(beside.model(arm)), beside.score(arm), shape="diamond")
        for arm in arms
    ]


def other_name(beside: Material, arm: str) -> str:
    """What a network of another run is called."""
    model = beside.content.models["student"].rpartition(":")[2]
    return f"{model}, {'distilled' if arm == 'student' else 'alone'}"


def _whole(found: Mapping[str, Any], cost: float) -> _Mark:
    return _Mark("control", "without exits", cost, found["chosen"]["whole"])


def _chart(found: Mapping[str, Any], marks: Sequence[_Mark], cost: str, x_title: str, label: str) -> str:
    curves: Mapping[str, Sequence[Mapping[str, float]]] = found["curves"]
    rows = [row for curve in curves.values() for row in curve]
    costs = [mark.x for mark in marks] + [row[cost] for row in rows]
    scores = [mark.y for mark in marks] + [row["accuracy"] for row in rows]
    frame = Frame.of(fitted(costs, room=0.12), fitted(scores, room=0.08), size=SIZE)
    write = milliseconds if cost == "latency_ms" else compact
    parts = [frame.axes(_ticks(cost), lambda value: percent(value, 1), x_title)]
    for kind, style, dash in _styles(found):
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in _pixels(frame, curves[kind], cost))
        parts.append(
            f'<polyline class="line {style}" style="stroke-dasharray:{dash or "none"}" points="{points}"/>'
        )
    for mark in marks:
        title = f"{mark.name}: {percent(mark.y)}, {write(mark.x)}"
        parts.append(f"<g><title>{escape(title)}</title>{_drawn(frame, mark)}</g>")
    labels = [Label(mark.kind, mark.name, frame.x(mark.x), frame.y(mark.y)) for mark in reversed(marks)]
    parts.append(
        names(frame, labels, [at for curve in curves.values() for at in _pixels(frame, curve, cost)])
    )
    return frame.drawing(label, "".join(parts))


def _pixels(frame: Frame, curve: Sequence[Mapping[str, float]], cost: str) -> list[tuple[float, float]]:
    return [(frame.x(row[cost]), frame.y(row["accuracy"])) for row in curve]


def _ticks(cost: str) -> Any:
    return (lambda value: f"{value:g}") if cost == "latency_ms" else (lambda value: compact(value, 2))


def _styles(found: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Each kind of policy with its colour and dashes; the chosen one last, over the others."""
    chosen = found["policy"]["kind"]
    others = [kind for kind in found["curves"] if kind != chosen]
    styled = [(kind, "other", dash) for kind, dash in zip(others, DASHES[1:], strict=False)]
    return [*styled, (chosen, "student", DASHES[0])]


def legend(found: Mapping[str, Any]) -> str:
    """Which line is which kind of policy."""
    keys = ""
    for kind, style, dash in reversed(_styles(found)):
        line = (
            f'<svg viewBox="0 0 34 8" width="34" height="8" aria-hidden="true"><line class="line {style}" '
            f'x1="1" x2="33" y1="4" y2="4" style="stroke-dasharray:{dash or "none"}"/></svg>'
        )
        keys += f"<span>{line}{escape(kind)}</span>"
    return f'<p class="lines">{keys}</p>'


def _drawn(frame: Frame, mark: _Mark) -> str:
    x, y = frame.x(mark.x), frame.y(mark.y)
    spread = ""
    if mark.spread is not None:
        spread = frame.line(f"whisker {mark.kind}", (mark.spread[0], mark.y), (mark.spread[1], mark.y))
    if mark.shape == "diamond":
        corners = f"{x - 6:.1f},{y:.1f} {x:.1f},{y - 6:.1f} {x + 6:.1f},{y:.1f} {x:.1f},{y + 6:.1f}"
        return f'{spread}<polygon class="mark {mark.kind}" points="{corners}"/>'
    if mark.shape == "square":
        box = f'x="{x - 4:.1f}" y="{y - 4:.1f}" width="8" height="8" rx="1"'
        return f'{spread}<rect class="mark {mark.kind}" {box}/>'
    return f'{spread}<circle class="mark {mark.kind}" cx="{x:.1f}" cy="{y:.1f}" r="5.5"/>'
