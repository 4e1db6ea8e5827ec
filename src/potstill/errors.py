"""The one error that a user is meant to read: where, what was expected, what came."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

__all__ = ["UserError", "nearest"]


class UserError(ValueError):
    """A mistake in what the user gave; the command line prints it without a traceback, exit code 2.

    Args:
        where: The dotted key (``distill.kl.temperature``) or path the message is about.
        message: What was expected and what came.
    """

    def __init__(self, where: str, message: str) -> None:
        super().__init__(f"{where}: {message}" if where else message)
        self.where = where
        self.message = message

    def __reduce__(self) -> tuple[type[UserError], tuple[str, str]]:
        """Travel between processes whole."""
        return (type(self), (self.where, self.message))


def nearest(name: str, names: Iterable[str]) -> str:
    """``"; did you mean 'kl'?"`` for the closest of ``names``, else a list of the first names.

    >>> nearest("temprature", ["temperature", "weight"])
    "; did you mean 'temperature'?"
    """
    known = sorted(set(names))
    close = get_close_matches(name, known, n=1, cutoff=0.6)
    if close:
        return f"; did you mean '{close[0]}'?"
    shown = ", ".join(known[:12]) + (", ..." if len(known) > 12 else "")
    return f"; known: {shown}" if known else ""
