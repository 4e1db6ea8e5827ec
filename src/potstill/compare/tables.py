"""The rows of a comparison as text, CSV and Markdown."""

from __future__ import annotations

import csv
import io
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

__all__ = ["aligned", "csv_table", "markdown_lines", "markdown_table", "text_table"]

Row = Mapping[str, Any]

COLUMNS = (
    "method",
    "status",
    "mean",
    "spread",
    "gain",
    "interval_low",
    "interval_high",
    "verdict",
    "seconds_per_step",
    "peak_memory_bytes",
    "steps",
)


def _rows(data: Mapping[str, Any]) -> Iterator[Row]:
    """The control stands where its gain of 0 puts it; what failed comes last."""
    control_shown = False
    for row in data["methods"]:
        if not control_shown and (row["gain"] is None or row["gain"] < 0):
            yield data["control"]
            control_shown = True
        yield row
    if not control_shown:
        yield data["control"]


def csv_table(data: Mapping[str, Any]) -> str:
    """One line a method, the control among them; metrics and gains are fractions, memory is in bytes."""
    seeds = data["seeds"]
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow([*COLUMNS, *(f"{data['metric']}_seed_{seed}" for seed in seeds), "reason"])
    for row in _rows(data):
        low, high = row["interval"] or (None, None)
        flat = {**row, "interval_low": low, "interval_high": high}
        per_seed = row["per_seed"] or [None] * len(seeds)
        writer.writerow([*(flat[name] for name in COLUMNS), *per_seed, row["reason"]])
    return stream.getvalue()


def _cells(row: Row) -> list[str]:
    """A row as people read it: per cent, points, seconds, megabytes."""
    if row["status"] == "failed":
        return [row["method"], "", "", "", "", "failed", "", ""]
    interval, gain, spread = row["interval"], row["gain"], row["spread"]
    return [
        row["method"],
        f"{row['mean'] * 100:.2f} %",
        "" if spread is None else f"{spread * 100:.2f}",
        "" if gain is None else f"{gain * 100:+.2f}",
        "" if interval is None else f"{interval[0] * 100:+.2f} to {interval[1] * 100:+.2f}",
        row["verdict"] or "",
        f"{row['seconds_per_step']:.3g}",
        f"{row['peak_memory_bytes'] / 1e6:.0f}",
    ]


def _heads(data: Mapping[str, Any]) -> list[str]:
    return ["method", data["metric"], "spread", "gain", "95 % interval", "verdict", "s/step", "peak MB"]


def text_table(data: Mapping[str, Any]) -> str:
    """The table for the terminal, with what failed and how far the order can be trusted below."""
    lines = [_heads(data), *(_cells(row) for row in _rows(data))]
    return "\n".join([*aligned(lines, left=(0, 5)), *_below(data)])


def aligned(lines: Sequence[Sequence[str]], left: Collection[int]) -> list[str]:
    """Columns of even width, to the right but for those in ``left``.

    >>> aligned([["a", "b"], ["one", "12"]], left=(0,))
    ['a     b', 'one  12']
    """
    widths = [max(len(line[place]) for line in lines) for place in range(len(lines[0]))]

    def shown(line: Sequence[str]) -> str:
        cells = [
            cell.ljust(width) if place in left else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        return "  ".join(cells).rstrip()

    return [shown(line) for line in lines]


def markdown_lines(lines: Sequence[Sequence[str]], left: Collection[int]) -> list[str]:
    """The same in Markdown, the heads first.

    >>> markdown_lines([["a", "b"], ["one", "12"]], left=(0,))
    ['| a | b |', '|---|---:|', '| one | 12 |']
    """
    table = ["| " + " | ".join(line) + " |" for line in lines]
    rule = "".join("---|" if place in left else "---:|" for place in range(len(lines[0])))
    return [table[0], f"|{rule}", *table[1:]]


def markdown_table(data: Mapping[str, Any], command: str, machine: str) -> str:
    """The table as Markdown, with how it was made."""
    table = markdown_lines([_heads(data), *(_cells(row) for row in _rows(data))], left=(0, 5))
    return "\n".join(
        [
            f"# Methods compared over {len(data['seeds'])} seed(s)",
            "",
            f"Made by `{command}` with Potstill {data['potstill']} on {machine}.",
            "",
            *table,
            "",
            *(line for below in _below(data) for line in (below, "")),
        ]
    )


def _below(data: Mapping[str, Any]) -> Iterator[str]:
    steps = data["control"]["steps"]
    yield (
        f"teacher {data['teacher']['test'] * 100:.2f} %; {steps} steps a cell, seeds "
        f"{', '.join(map(str, data['seeds']))}; gain in points over the control, paired by seed and sample"
    )
    if len(data["seeds"]) < 2:
        yield "one seed: the spread between runs was not measured, so there is no verdict"
    yield data["ranking"]["words"]
    yield from (
        f"failed: {row['method']}: {row['reason']}" for row in data["methods"] if row["status"] == "failed"
    )
