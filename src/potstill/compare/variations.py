"""Recipes that differ in any keys, each compared with its own control and with the first of them.

A folder for each variation is a comparison like any other; here they are only told apart and joined.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from potstill.compare.lineup import CONTROL, NAME
from potstill.compare.standings import Comparison, Scores
from potstill.compare.tables import aligned, markdown_lines
from potstill.compare.tournament import compare_methods
from potstill.config import Recipe, load, parse_yaml
from potstill.errors import UserError
from potstill.files import write_json, write_text
from potstill.metrics.verdict import compare
from potstill.results.outcome import Shared

__all__ = ["Varied", "compare_variations", "read_variations"]

FIXED = ("seed", "seeds", "distill", "task")
"""Runs are paired by seed, and what is matched is a matter of methods and rows."""
HEADS = ("variation", "method", "control", "change", "95 %", "student", "change", "95 %", "gain", "95 %")


@dataclass(frozen=True)
class Varied:
    """What the variations of a recipe found out.

    Attributes:
        folder: Holds a comparison for each variation, ``variations.json`` and ``variations.md``.
        rows: A row for each variation and method: scores of ``control`` and ``student``, the ``change`` of
            each from the first variation (``None`` in its own rows) and the ``gain`` of the student over its
            control, all differences with their 95 % interval and verdict.
        failed: ``variation/method`` of what could not be trained.
        interrupted: The user stopped it; the same command goes on.
    """

    folder: Path
    rows: list[dict[str, Any]] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    interrupted: bool = False

    @property
    def page(self) -> Path:
        """The table as a file."""
        return self.folder / "variations.md"

    def table(self) -> str:
        """The table for the terminal."""
        return "\n".join(aligned([list(HEADS), *map(_cells, self.rows)], left=(0, 1)))


def read_variations(path: Path, recipe: str | Path, overrides: Sequence[str] = ()) -> dict[str, list[str]]:
    """The settings of each variation, in order; all recipes are checked.

    Args:
        path: A YAML file ``{name: {key: value}}`` with dotted keys.
        recipe: What they vary.
        overrides: ``a.b=value`` settings that all have in common.

    Returns:
        ``a.b=value`` settings by name.

    Raises:
        UserError: If a name or a key does not do, or a recipe does not hold.
    """
    if not path.is_file():
        raise UserError("--vary", f"expected a file of named settings, got {path}")
    found: dict[str, list[str]] = {}
    for name, keys in parse_yaml(path.read_text(encoding="utf-8"), str(path)).items():
        where = f"{path}: {name}"
        if not NAME.fullmatch(str(name)):
            raise UserError(where, "expected a name of letters, digits and _ . + = -")
        if not isinstance(keys, Mapping):
            raise UserError(where, f"expected settings such as {{augment.cutout: 8}}, got {keys!r}")
        for key in map(str, keys):
            if key.split(".")[0] in FIXED:
                raise UserError(f"{where}: {key}", "must be the same for all; name methods or give --rows")
            if key.split(".")[0] == "data" and key != "data.limit":
                raise UserError(f"{where}: {key}", "must be the same for all: scores are paired by sample")
        found[str(name)] = [f"{key}={json.dumps(value)}" for key, value in keys.items()]
        try:
            load(recipe, [*overrides, *found[str(name)]])
        except UserError as error:
            raise UserError(f"{where}: {error.where}", error.message) from error
    if len(found) < 2:
        raise UserError(str(path), f"expected at least two variations, got {len(found)}")
    return found


def compare_variations(
    recipe: str | Path,
    variations: Path,
    methods: str | None = None,
    *,
    rows: Path | None = None,
    out: Path | None = None,
    overrides: Sequence[str] = (),
    echo: Callable[[str], None] = print,
    **options: Any,
) -> Varied:
    """Train control and student under every variation of a recipe; ``potstill compare --vary`` is this.

    Args:
        recipe: A recipe file or the name of a shipped one.
        variations: A YAML file ``{name: {key: value}}``; the first is what the others are compared with.
        methods: As in :func:`~potstill.compare.compare_methods`; without ``methods`` and ``rows`` the
            recipe's own ``distill`` block is the one method, named ``student``.
        rows: A YAML file of named ``distill`` blocks.
        out: The folder; ``runs/<recipe name>-varied`` by default.
        overrides: ``a.b=value`` settings that all have in common.
        echo: Where lines of text go.
        **options: ``seeds``, ``data`` and ``jobs`` of :func:`~potstill.compare.compare_methods`.

    Returns:
        The joint table; a method that failed in some variation has no row there and is named.

    Raises:
        UserError: For anything wrong with the recipe, the names, the data or the folders.
    """
    settings = read_variations(variations, recipe, overrides)
    folder = (out or Path("runs") / f"{Path(recipe).stem}-varied").resolve()
    blocks = rows if rows or methods else {"student": load(recipe, overrides).distill}
    found: dict[str, Comparison] = {}
    known: dict[tuple[object, ...], Shared | None] = {}
    for name, own in settings.items():
        both = [*overrides, *own]
        networks = _networks(load(recipe, both))
        found[name] = compare_methods(
            recipe,
            methods,
            rows=blocks,
            out=folder / name,
            overrides=both,
            shared=known.get(networks),
            echo=functools.partial(_say, echo, name),
            **options,
        )
        if found[name].interrupted:
            return Varied(folder, interrupted=True)
        known[networks] = known.get(networks) or found[name].shared
    varied = Varied(
        folder, _rows(found), [f"{at}/{each}" for at, one in found.items() for each in one.failed]
    )
    write_json(folder / "variations.json", {"settings": settings, "rows": varied.rows})
    table = markdown_lines([list(HEADS), *map(_cells, varied.rows)], left=(0, 1))
    write_text(varied.page, "\n".join(table) + "\n")
    return varied


def _say(echo: Callable[[str], None], name: str, line: str) -> None:
    echo(f"{name}: {line}")


def _networks(recipe: Recipe) -> tuple[object, ...]:
    """What decides how the teacher answers, and how large the networks are."""
    return tuple(
        map(
            repr, (recipe.teacher, recipe.student, recipe.scheme, recipe.train.device, recipe.train.precision)
        )
    )


def _rows(found: Mapping[str, Comparison]) -> list[dict[str, Any]]:
    first = next(iter(found.values())).scores
    rows = []
    for name, comparison in found.items():
        scores = comparison.scores
        control = scores[CONTROL]
        for method, student in scores.items():
            if method == CONTROL:
                continue
            changes: dict[str, Any] = {"control_change": None, "student_change": None}
            if scores is not first:
                changes["control_change"] = _difference(control, first[CONTROL])
                changes["student_change"] = _difference(student, first[method]) if method in first else None
            means = {"control": float(control.mean()), "student": float(student.mean())}
            gain = _difference(student, control)
            rows.append({"variation": name, "method": method, **means, **changes, "gain": gain})
    return rows


def _difference(one: Scores, other: Scores) -> dict[str, Any]:
    found = compare(one, other)
    several = len(one) > 1  # with one seed the spread between runs is not known
    verdict = found.verdict if several else None
    return {"mean": found.gain, "interval": list(found.interval), "verdict": verdict}


def _cells(row: Mapping[str, Any]) -> list[str]:
    def points(key: str) -> list[str]:
        found = row[key]
        if found is None:
            return ["", ""]
        low, high = found["interval"]
        return [f"{found['mean'] * 100:+.2f}", f"{low * 100:+.2f} to {high * 100:+.2f}"]

    scores = {arm: [f"{row[arm] * 100:.2f} %", *points(f"{arm}_change")] for arm in ("control", "student")}
    return [row["variation"], row["method"], *scores["control"], *scores["student"], *points("gain")]
