"""What the sections of the page are made from, read from the run folder and nowhere else."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import Any

from potstill.errors import UserError
from potstill.metrics.quality import SCALELESS, SHARES, gain_unit, shown_gain
from potstill.report._format import percent
from potstill.report.content import ReportContent

__all__ = ["ARMS", "Material", "read", "read_beside", "section"]

ARMS = ("teacher", "control", "student")


@dataclass(frozen=True)
class Material:
    """A finished run as the page sees it.

    Attributes:
        content: What the run wrote for the page.
        result: The contents of ``result.json``.
        recipe: The resolved recipe, as text.
        environment: The contents of ``environment.json``.
        metrics: The rows of ``metrics.jsonl``; empty if the file is gone.
        views: The picture of augmented samples, where there is one.
        beside: Another run to compare with.
    """

    content: ReportContent
    result: Mapping[str, Any]
    recipe: str
    environment: Mapping[str, Any]
    metrics: tuple[Mapping[str, Any], ...] = ()
    views: bytes | None = None
    beside: Material | None = None

    @property
    def arms(self) -> tuple[str, ...]:
        """The arms that were evaluated, teacher first."""
        return tuple(arm for arm in ARMS if arm in self.result["models"])

    @property
    def metric(self) -> str:
        """Name of the metric, such as ``accuracy``."""
        return str(self.result["metric"])

    @property
    def metric_name(self) -> str:
        """The metric as people write it, such as ``accuracy`` or ``mAP``."""
        return {"map": "mAP", "psnr": "PSNR", "kid": "KID"}.get(self.metric, self.metric)

    @property
    def metric_title(self) -> str:
        """The same at the beginning of a title, as HTML."""
        name = escape(self.metric_name)
        return name.capitalize() if name.islower() else name

    @property
    def shares(self) -> bool:
        """Whether the metric is a fraction."""
        return self.metric in SHARES

    @property
    def gain_unit(self) -> str:
        """What the gain is measured in."""
        return gain_unit(self.metric)

    def written(self, value: float | None, digits: int = 2) -> str:
        """A value of the metric: fractions in per cent, anything else as a number."""
        if self.shares or value is None:
            return percent(value, digits)
        if self.metric in SCALELESS:
            return f"{value:.4g}"
        return f"{value:,.{digits}f}"

    def gained(self, value: float) -> str:
        """A difference of two arms, signed, without its unit."""
        return shown_gain(self.metric, value).replace("-", "−")

    @property
    def sample(self) -> str:
        """What one sample of the task is called."""
        names = dict.fromkeys(("classification", "image_to_image", "detection"), "image")
        names |= {"text_classification": "text"}
        return names.get(self.result["task"], "sample")

    @property
    def num_seeds(self) -> int:
        """Runs of each arm."""
        return int(self.result["seeds"])

    def model(self, arm: str) -> Mapping[str, Any]:
        """What ``result.json`` holds of one arm."""
        found: Mapping[str, Any] = self.result["models"][arm]
        return found

    def score(self, arm: str) -> float:
        """The metric of one arm, mean over its seeds."""
        return float(self.model(arm)[self.metric])

    def latency(self, arm: str, batch: str) -> Mapping[str, float] | None:
        """``median_ms``, ``low_ms`` and ``high_ms`` of one arm, if they were measured."""
        found: Mapping[str, float] | None = self.model(arm).get("latency_ms", {}).get(batch)
        return found


def read(run: Path) -> Material:
    """Read a run folder.

    Raises:
        UserError: If a file of the run is missing or cannot be read.
    """
    return Material(
        content=ReportContent.load(run / "report.json"),
        result=_result(run / "result.json"),
        recipe=_text(run / "recipe.yaml"),
        environment=_json(run / "environment.json"),
        metrics=_rows(run / "metrics.jsonl"),
        views=(run / "views.png").read_bytes() if (run / "views.png").is_file() else None,
    )


def read_beside(run: Path, other: Path) -> Material:
    """Read a run with early exits and another to compare it with.

    Raises:
        UserError: If the first has no early exits, or the other has other classes or was not timed.
    """
    mine, theirs = read(run), read(other)
    if not isinstance(mine.result.get("early_exit"), dict):
        raise UserError("--beside", f"expected a run with early exits to compare with others, got {run}")
    if mine.content.class_names != theirs.content.class_names:
        raise UserError("--beside", f"expected a run on the same classes, {other} has others")
    if "1" not in theirs.model("student").get("latency_ms", {}):
        raise UserError("--beside", f"expected a run that was timed at batch 1, {other} was not")
    return replace(mine, beside=theirs)


def _result(path: Path) -> Mapping[str, Any]:
    result = _json(path)
    models = result.get("models")
    metric = result.get("metric")
    for arm in dict.fromkeys([*(models if isinstance(models, dict) else ()), "student"]):
        row = models.get(arm) if isinstance(models, dict) else None
        if not isinstance(row, dict) or not isinstance(row.get(metric), int | float):
            raise UserError(str(path), f"expected the result of a run, got none for models.{arm}.{metric}")
    return result


def _rows(path: Path) -> tuple[Mapping[str, Any], ...]:
    """The whole lines of a file that may end in a torn one; the page can do without them."""
    if not path.is_file():
        return ()
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            rows.append(row)
    return tuple(rows)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(str(path), f"expected a file of a finished run: {error.strerror}") from error


def _json(path: Path) -> Mapping[str, Any]:
    try:
        loaded = json.loads(_text(path))
    except ValueError as error:
        if isinstance(error, UserError):
            raise
        raise UserError(str(path), f"expected JSON, cannot read it: {error}") from error
    if not isinstance(loaded, dict):
        raise UserError(str(path), f"expected a JSON object, got {type(loaded).__name__}")
    return loaded


def section(name: str, title: str, body: str, lead: str = "") -> str:
    """One section of the page; ``title`` and ``lead`` are HTML of our own making."""
    intro = f'<p class="lead">{lead}</p>' if lead else ""
    return f'<section id="{name}"><h2>{title}</h2><div class="body">{intro}{body}</div></section>'
