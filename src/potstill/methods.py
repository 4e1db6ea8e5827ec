"""The pages of ``potstill methods``, made from the docstrings and signatures of the losses.

``python -m potstill.methods`` prints ``docs/methods.md``.
"""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from potstill import losses
from potstill._annotated import options_of
from potstill.errors import UserError, nearest
from potstill.losses import LossSpec, Range, spec_of

__all__ = ["Method", "describe", "listing", "markdown", "page"]


@dataclass(frozen=True)
class Method:
    """What is known of one loss.

    Attributes:
        name: What a recipe calls it.
        summary: First line of its docstring.
        sections: The docstring's sections by title, each as one paragraph.
        spec: Its declaration.
        options: Its options with their type, range and default, in words.
    """

    name: str
    summary: str
    sections: dict[str, str]
    spec: LossSpec
    options: dict[str, str]

    @property
    def recipe_line(self) -> str:
        """A line that stands ready for a recipe's ``distill`` section.

        >>> describe("kl").recipe_line
        'kl: {weight: 0.9, temperature: 4.0}'
        """
        options = options_of(getattr(losses, self.name))
        defaults = {
            name: default
            for name, (_, default) in options.items()
            if default is not None and not isinstance(default, bool | str)
        }
        inside = ", ".join(
            f"{name}: {_number(value)}" for name, value in {"weight": self.spec.weight, **defaults}.items()
        )
        return f"{self.name}: {{{inside}}}"


def _number(value: Any) -> str:
    """A number as YAML reads one: ``3e-05`` would be text."""
    small = isinstance(value, float) and "e" in repr(value)
    return f"{value:.12f}".rstrip("0") if small else str(value)


def describe(name: str) -> Method:
    """Everything known of the loss ``name``.

    Raises:
        UserError: If there is no such loss; the nearest name is given.
    """
    if name not in losses.__all__:
        raise UserError(name, f"no such method{nearest(name, losses.__all__)}")
    function: Callable[..., Any] = getattr(losses, name)
    text = inspect.getdoc(function) or ""
    return Method(
        name=name,
        summary=text.split("\n", 1)[0],
        sections=_sections(text),
        spec=spec_of(function),
        options={
            option: f"{_words(hint)}, default {default}"
            for option, (hint, default) in options_of(function).items()
        },
    )


def _sections(text: str) -> dict[str, str]:
    """``Title:`` followed by indented lines; lines are joined."""
    found: dict[str, list[str]] = {}
    title = ""
    for line in text.splitlines():
        if match := re.fullmatch(r"([A-Z][a-z]+):", line):
            title = match[1]
            found[title] = []
        elif title and line.startswith("    "):
            found[title].append(line.strip())
        elif line.strip():
            title = ""
    return {title: " ".join(lines) for title, lines in found.items()}


def _words(hint: Any) -> str:
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is typing.Literal:
        return "one of " + ", ".join(map(str, arguments))
    if typing.get_origin(hint) is typing.Annotated:
        limits = [_range(item) for item in arguments[1:] if isinstance(item, Range)]
        return " ".join([_words(arguments[0]), *limits])
    return {float: "number", int: "integer", bool: "true or false"}.get(hint, str(hint))


def _range(limit: Range) -> str:
    words = [
        f"{sign} {bound:g}"
        for sign, bound in ((">", limit.above), (">=", limit.least), ("<=", limit.most))
        if bound is not None
    ]
    return " and ".join(words)


def listing() -> str:
    """All methods, two lines each."""
    rows = [describe(name) for name in losses.__all__]
    wide = max(len(row.name) for row in rows) + 2
    lines = [f"{'method':{wide}}{'compares':11}{'weight':>8}  formula"]
    for row in rows:
        lines.append(f"{row.name:{wide}}{row.spec.signal:11}{row.spec.weight:>8g}  {row.sections['Formula']}")
        lines.append(f"{'':{wide + 21}}{row.sections['Reference']}")
    lines.append("potstill methods NAME shows one page with a ready recipe line")
    return "\n".join(lines)


def page(name: str) -> str:
    """One method in full."""
    row = describe(name)
    lines = [
        row.name,
        f"  {row.summary}",
        f"  formula: {row.sections['Formula']}",
        f"  compares: {_needs(row)}",
    ]
    lines += [f"  option {option}: {words}" for option, words in row.options.items()]
    lines += [
        f"  default weight: {row.spec.weight:g}, beside labels at {row.spec.labels:g}{_end(row)}",
        f"  source: {row.sections['Reference']}",
        "  recipe:",
        f"    distill: {{{row.recipe_line}}}",
    ]
    return "\n".join(lines)


def _needs(row: Method) -> str:
    needs = {
        "logits": "logits (N, C) or, for tokens, (N, L, C)",
        "maps": "maps (N, C, H, W) of tapped layers",
        "features": "tapped layers: maps, tokens or vectors",
        "vectors": "vectors (N, C) of a tapped layer; maps and tokens are averaged over positions first",
        "tokens": "tokens (N, L, C) of tapped layers",
        "attention": "attention (N, heads, L, L) of tapped layers",
        "classes": "a detector's softmax classes of the same regions",
        "scores": "a detector's sigmoid scores of the same anchors",
        "boxes": "a detector's boxes of the same regions",
        "seen": "a frozen network's maps of both images (the recipe's ``features``)",
        "corners": "a detector's boxes of the same regions, by their corners",
        "response": "the boxes that a detector of any kind answers with",
        "gradients": "gradients of each network's own loss by its input or a tapped layer",
    }[row.spec.signal]
    needs += ", before their activation function" if row.spec.before_activation else ""
    needs += "; labels" if row.spec.target else ""
    needs += {"each": "", "neighbours": "; two neighbouring layers a time", "all": "; all layers at once"}[
        row.spec.spans
    ]
    return needs + ("; a small adapter makes shapes equal" if row.spec.adapter else "")


def _end(row: Method) -> str:
    return f", until {row.spec.until:g} of the run" if row.spec.until < 1 else ""


def markdown() -> str:
    """``docs/methods.md``."""
    lines = [
        "# What can be matched",
        "",
        "Made from the docstrings by `python -m potstill.methods > docs/methods.md`; a test keeps it so.",
        "`potstill methods NAME` shows the same page on the terminal.",
        "",
        "| method | compares | default weight | labels' weight beside it |",
        "|---|---|---|---|",
    ]
    rows = [describe(name) for name in losses.__all__]
    for row in rows:
        lines.append(
            f"| [`{row.name}`](#{row.name}) | {row.spec.signal} | {row.spec.weight:g} | {row.spec.labels:g} |"
        )
    for row in rows:
        lines += ["", f"## {row.name}", "", row.summary, "", f"    {row.sections['Formula']}", ""]
        lines += [f"- compares {_needs(row)}{_end(row)}"]
        lines += [f"- option `{option}`: {words}" for option, words in row.options.items()]
        if row.spec.reason:
            lines.append(f"- {row.spec.reason}")
        lines += [f"- {row.sections['Reference']}", "", "```yaml", f"distill: {{{row.recipe_line}}}", "```"]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(markdown(), end="")
