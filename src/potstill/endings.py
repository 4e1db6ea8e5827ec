"""How a verb ends: one line for what a user can mend, and an exit code."""

from __future__ import annotations

import os
import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import typer

from potstill.errors import UserError, no_memory

__all__ = ["FAILED", "INTERRUPTED", "MISTAKE", "reporting", "say"]

FAILED, MISTAKE, INTERRUPTED = 1, 2, 130
_FULL = "data.max_length: out of memory outside of training steps: lower it (or data.size)"
_LOST_PEER = re.compile(r"Connection (closed|reset) by peer|Broken pipe")  # gloo, when a process is gone


@contextmanager
def reporting(show: bool) -> Iterator[None]:
    """Turn errors that a user can mend into one line and exit code 2, and Ctrl-C into 130."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, head or less, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (UserError, OSError) as error:
        raise _stop(_message(error), MISTAKE, show) from error
    except KeyboardInterrupt as error:
        raise _stop("interrupted", INTERRUPTED, show) from error
    except (RuntimeError, MemoryError) as error:
        if no_memory(error):
            reason = str(error).partition("\n")[0][:200]
            raise _stop(f"{_FULL}; {reason}", MISTAKE, show) from error
        if "RANK" not in os.environ or not _LOST_PEER.search(str(error)):
            raise
        raise _stop("stopped: another process failed; its message says why", MISTAKE, show) from error


def _stop(line: str, code: int, show: bool) -> typer.Exit:
    if show:
        traceback.print_exc()
    say(line)
    return typer.Exit(code)


def _message(error: UserError | OSError) -> str:
    """What is wrong, starting with where: a recipe's key or a path."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{os.fsdecode(error.filename)}: {error.strerror}"
    return str(error)


def say(line: str) -> None:
    """To stderr, once for all processes, and never wrapped."""
    if _is_first(line):
        print(line, file=sys.stderr, flush=True)


def _is_first(line: str) -> bool:
    """Whether no other process of this run said it: a mistake may show on one of them only, or on all."""
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":  # alone, or without torchrun
        return os.environ.get("RANK", "0") == "0"
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    store = TCPStore(  # torchrun's own, which outlives the processes
        os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False
    )
    return int(store.add(f"potstill said: {line}", 1)) == 1
