"""A result in a few lines of text: what a reader must not miss, and the arms as a table."""

from __future__ import annotations

from typing import Any

from potstill.metrics.quality import gain_unit, shown, shown_gain

__all__ = ["table_of", "warnings_of"]


def warnings_of(result: dict[str, Any]) -> list[str]:
    """What a reader must not miss."""
    models, metric, sign = result["models"], result["metric"], 1 if result["higher_is_better"] else -1
    found = []
    if {"control", "teacher"} <= set(models):
        teacher, control = (models[arm][metric] for arm in ("teacher", "control"))
        if sign * teacher < sign * control:
            found.append(
                f"the teacher ({shown(metric, teacher)}) is worse than the control "
                f"({shown(metric, control)}): it has little to teach this student"
            )
    elif {"student", "teacher"} <= set(models):
        teacher, student = (models[arm][metric] for arm in ("teacher", "student"))
        if sign * teacher < sign * student:
            found.append(
                f"the teacher ({shown(metric, teacher)}) is worse than the student "
                f"({shown(metric, student)}), and without a control nobody knows whether it taught anything"
            )
    if result["seeds"] == 1 and "control" in models:
        found.append("one seed: the spread between runs was not measured")
    return found


def table_of(data: dict[str, Any]) -> str:
    """The arms of a result, a line each, and the verdict."""
    metric = data["metric"]
    lines = [f"{'':10}{metric:>10}{'parameters':>14}{'MACs':>16}{'bytes':>14}{'ms at 1':>9}"]
    for name, model in data["models"].items():
        latency = model["latency_ms"].get("1", {}).get("median_ms", float("nan"))
        lines.append(
            f"{name:10}{shown(metric, model[metric]):>10}{model['parameters']:>14,}{model['macs']:>16,}"
            f"{model['bytes']:>14,}{latency:>9.2f}"
        )
    if data["verdict"] is not None:
        gain, low, high = (shown_gain(metric, value) for value in (data["gain"], *data["interval"]))
        lines.append(
            f"gain of distillation {gain} {gain_unit(metric)}, 95 % interval [{low}, {high}], "
            f"{data['seeds']} seed(s): {data['verdict']}"
        )
    if data["reason"]:
        lines.append(data["reason"])
    return "\n".join(lines)
