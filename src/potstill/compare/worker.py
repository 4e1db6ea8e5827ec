"""One cell in a process of its own: ``python -m potstill.compare.worker FOLDER METHOD SEED TITLE``.

It leaves ``cell.json``, or ``failed.json`` with a message, and ends when the process that started it does.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from dataclasses import replace
from pathlib import Path

import torch

from potstill.compare.cell import run_cell
from potstill.compare.place import Job, Place
from potstill.errors import UserError
from potstill.experiment import load_experiment
from potstill.files import write_json
from potstill.folder import RunFolder

__all__ = ["FAILED", "INTERRUPTED", "main", "reason"]

FAILED, INTERRUPTED = 3, 130


def main(words: list[str]) -> int:
    """Train one cell with one thread.

    Args:
        words: The folder, the method, the seed, and what to call the cell.

    Returns:
        0 if the cell is finished, 3 if it failed, 130 if the user interrupted it.
    """
    folder, method, seed, title = words
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    place, job = Place(Path(folder)), Job(method, int(seed))
    try:
        recipe = place.recipe("control")
        recipe = replace(recipe, data=replace(recipe.data, workers=0))  # the cores are taken by other cells
        facts = json.loads(RunFolder(place.path).environment.read_text(encoding="utf-8"))
        base = load_experiment(recipe, [Path(path) for path in facts["search"]])
        return 0 if run_cell(base, place, job, title) else INTERRUPTED
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as error:  # whatever it is, it is this method's row and not the end of the others
        write_json(place.cell(job) / "failed.json", {"message": reason(error)})
        return FAILED


def reason(error: Exception) -> str:
    """What went wrong, in one line."""
    text = " ".join(str(error).split()) or "no message"
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text}"


def _end_with_the_parent() -> None:
    """The other end of the standard input is the parent's: when it closes, nobody waits for this cell."""
    while sys.stdin.buffer.read(1):
        pass
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
