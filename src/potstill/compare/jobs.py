"""Train cells: one after the other in this process, or several at once in processes of their own."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from typing import Any

from potstill.compare.cell import reason, run_cell
from potstill.compare.lineup import CONTROL
from potstill.compare.place import Job, Place
from potstill.errors import UserError
from potstill.experiment import Experiment
from potstill.metrics.quality import shown

__all__ = ["Outcomes", "check_jobs", "run_here", "run_in_processes"]

Say = Callable[[str], None]
Process = subprocess.Popen[str]


@dataclass
class Outcomes:
    """How the cells went.

    Attributes:
        failed: For each method that failed, the first seed's message.
        interrupted: The user stopped it.
    """

    failed: dict[str, str] = field(default_factory=dict)
    interrupted: bool = False

    def fail(self, job: Job, message: str) -> None:
        """Note a failed cell; a comparison without its control has no sense.

        Raises:
            UserError: If the cell is the control's.
        """
        if job.method == CONTROL:
            raise UserError(f"{job.name} (the student without distillation)", message)
        self.failed.setdefault(job.method, f"seed {job.seed}: {message}")


def check_jobs(jobs: int) -> None:
    """One cell a core at most.

    Raises:
        UserError: If ``jobs`` is below 1 or above the number of cores.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if jobs < 1:
        raise UserError("--jobs", f"must be >= 1, got {jobs}")
    if jobs > cores:
        raise UserError("--jobs", f"must be at most the {cores} cores here (a cell takes one), got {jobs}")


def run_here(
    base: Experiment, place: Place, jobs: Sequence[Job], titles: Sequence[str], say: Say
) -> Outcomes:
    """Train cells one after the other; data and teacher are loaded once.

    Raises:
        UserError: If the control fails.
    """
    outcomes = Outcomes()
    for job, title in zip(jobs, titles, strict=True):
        if job.method in outcomes.failed:
            continue
        try:
            finished = run_cell(base, place, job, title)
        except Exception as error:  # this method's row; the others go on
            outcomes.fail(job, reason(error))
            say(f"{title}: failed: {reason(error)}")
            continue
        if not finished:
            outcomes.interrupted = True
            break
        say(_line(place, job, title))
    return outcomes


def _line(place: Place, job: Job, title: str) -> str:
    figures = place.figures(job)
    reached = shown(figures["metric"], figures["last"])
    return (
        f"{title}: {reached} on the test part after {figures['steps']} steps, "
        f"{figures['seconds']:.0f} s, {figures['seconds_per_step']:.3g} s a step"
    )


def run_in_processes(
    place: Place, jobs: Sequence[Job], titles: Sequence[str], count: int, lock: int | None, say: Say
) -> Outcomes:
    """Train ``count`` cells at once, each in a process with one thread.

    Raises:
        UserError: If the control fails.
    """
    pool = _Pool(place, list(zip(jobs, titles, strict=True)), lock, say)
    with ThreadPoolExecutor(count) as threads:
        waiting = [threads.submit(pool.work) for _ in range(count)]
        try:
            for done in as_completed(waiting):
                done.result()
        except BaseException as error:
            pool.stop()
            if not isinstance(error, KeyboardInterrupt):
                raise
            pool.outcomes.interrupted = True
    return pool.outcomes


class _Pool:
    """Processes that train, each with a thread here that hands out cells and takes the answers."""

    def __init__(self, place: Place, cells: Sequence[tuple[Job, str]], lock: int | None, say: Say) -> None:
        self.place, self.lock, self.say = place, lock, say
        self.outcomes = Outcomes()
        self._cells = deque(cells)
        self._guard = threading.Lock()
        self._running: set[Process] = set()
        self._stopped = False

    def work(self) -> None:
        """Train cells until none is left; a process that died is replaced."""
        while self._cells and not self._stopped:
            process = self._start()
            with process:
                while (cell := self._next()) is not None and self._train(process, *cell):
                    pass
                assert process.stdin is not None
                process.stdin.close()
                process.wait()
            with self._guard:
                self._running.discard(process)

    def _next(self) -> tuple[Job, str] | None:
        with self._guard:
            while self._cells and not self._stopped:
                job, title = self._cells.popleft()
                if job.method not in self.outcomes.failed:
                    return job, title
        return None

    def _train(self, process: Process, job: Job, title: str) -> bool:
        """Have one cell trained; whether the process can go on with another."""
        assert process.stdin is not None
        assert process.stdout is not None
        answer: dict[str, Any] = {}
        with contextlib.suppress(BrokenPipeError, ValueError):  # it died: there is no answer
            process.stdin.write(f"{job.method} {job.seed} {title}\n")
            process.stdin.flush()
            answer = json.loads(process.stdout.readline())
        with self._guard:
            if answer.get("finished"):
                self.say(_line(self.place, job, title))
                return True
            if "finished" in answer or self._stopped:
                self.outcomes.interrupted = True
                self._stopped = True
                return False
            message = answer.get("failed") or _end(process.wait())
            self.say(f"{title}: failed: {message}")
            self.outcomes.fail(job, message)
        return bool(answer)

    def _start(self) -> Process:
        """A process with one thread; it ends with this one, however this one ends."""
        one = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
        with self._guard:
            process = subprocess.Popen(
                [sys.executable, "-m", "potstill.compare.worker", str(self.place.path)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, **one},
                start_new_session=True,  # Ctrl-C reaches it once, from here
                pass_fds=[] if self.lock is None else [self.lock],
            )
            self._running.add(process)
            if self._stopped:
                process.send_signal(signal.SIGINT)
        return process

    def stop(self) -> None:
        """Let every process save and end; none starts any more."""
        with self._guard:
            self._stopped = True
            for process in self._running:
                process.send_signal(signal.SIGINT)


def _end(code: int) -> str:
    if code < 0:
        return f"its process was ended by {signal.Signals(-code).name}; too little memory, perhaps"
    return f"its process ended with code {code}"
