"""The one error that a user is meant to read: where, what was expected, what came."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

__all__ = ["UserError", "nearest", "no_memory"]

NO_MEMORY = ("out of memory", "can't allocate memory")


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


def no_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on a processor or a GPU.

    >>> no_memory(RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")), no_memory(RuntimeError("no"))
    (True, False)
    """
    return isinstance(error, MemoryError) or any(words in str(error) for words in NO_MEMORY)


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
