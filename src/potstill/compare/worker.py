"""A process that trains cells, one after the other, for the one that started it.

It reads ``METHOD SEED TITLE`` lines from its standard input and answers each with a line of JSON. It ends
when its standard input does: when there is nothing left to do, or when the other process is gone.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from potstill.assembly.load import load_experiment
from potstill.compare.cell import reason, remembering, run_cell
from potstill.compare.place import Job, Place
from potstill.experiment import Experiment
from potstill.files import read_json
from potstill.folder import RunFolder

__all__ = ["main"]

INTERRUPTED = 130


def main(folder: str) -> None:
    """Train what is asked for, with one thread.

    Args:
        folder: The folder of the comparison.
    """
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a user's code prints is no answer
    asked: queue.Queue[str] = queue.Queue()
    threading.Thread(target=_listen, args=(asked,), daemon=True).start()
    torch.set_num_threads(1)
    place = Place(Path(folder))
    base: Experiment | None = None
    try:
        while True:
            method, seed, title = asked.get().split(" ", 2)
            try:
                base = base or _load(place)
                finished = run_cell(base, place, Job(method, int(seed)), title)
                answer: dict[str, Any] = {"finished": finished}
            except Exception as error:  # it is this method's row, and not the end of the others
                answer = {"failed": reason(error)}
            print(json.dumps(answer), file=answers, flush=True)
    except KeyboardInterrupt:
        os._exit(INTERRUPTED)


def _load(place: Place) -> Experiment:
    recipe = place.recipe("control")
    recipe = replace(recipe, data=replace(recipe.data, workers=0))  # the cores are taken by other cells
    facts = read_json(RunFolder(place.path).environment)
    return remembering(load_experiment(recipe, [Path(path) for path in facts["search"]]))


def _listen(asked: queue.Queue[str]) -> None:
    """Hand on the lines of the standard input, and leave at its end, whatever else goes on."""
    rest = b""
    while chunk := os.read(0, 1 << 16):
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            asked.put(line.decode())
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1])
