"""Train cells: one after the other in this process, or several at once in processes of their own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field

from potstill.compare.cell import run_cell
from potstill.compare.lineup import CONTROL
from potstill.compare.place import Job, Place
from potstill.compare.worker import INTERRUPTED, reason
from potstill.errors import UserError
from potstill.experiment import Experiment

__all__ = ["Outcomes", "check_jobs", "run_here", "run_in_processes"]

Say = Callable[[str], None]


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
    return (
        f"{title}: {figures['last']:.2%} on the test part after {figures['steps']} steps, "
        f"{figures['seconds']:.0f} s, {figures['seconds_per_step']:.3g} s a step"
    )


def run_in_processes(
    place: Place, jobs: Sequence[Job], titles: Sequence[str], count: int, lock: int | None, say: Say
) -> Outcomes:
    """Train ``count`` cells at once, each in a process with one thread.

    Raises:
        UserError: If the control fails.
    """
    pool = _Pool(place, lock, say)
    with ThreadPoolExecutor(count) as threads:
        waiting = [threads.submit(pool.run, job, title) for job, title in zip(jobs, titles, strict=True)]
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
    """The processes that run now; each is waited for by a thread."""

    def __init__(self, place: Place, lock: int | None, say: Say) -> None:
        self.place, self.lock, self.say = place, lock, say
        self.outcomes = Outcomes()
        self._guard = threading.Lock()
        self._running: set[subprocess.Popen[str]] = set()
        self._stopped = False

    def run(self, job: Job, title: str) -> None:
        """Train one cell, unless its method failed already."""
        process = self._start(job, title)
        if process is None:
            return
        lines = []
        with process:
            assert process.stderr is not None
            for line in process.stderr:
                lines.append(line.rstrip())
                with self._guard:
                    print(line, end="", file=sys.stderr, flush=True)
            code = process.wait()  # before its standard input is closed, which would end it
        with self._guard:
            self._running.discard(process)
            if code == INTERRUPTED:
                self.outcomes.interrupted = True
            elif self.place.done(job):
                self.say(_line(self.place, job, title))
            elif not self._stopped:
                message = self._message(job, code, lines)
                self.say(f"{title}: failed: {message}")
                self.outcomes.fail(job, message)

    def _start(self, job: Job, title: str) -> subprocess.Popen[str] | None:
        words = [str(self.place.path), job.method, str(job.seed), title]
        one = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
        (self.place.cell(job) / "failed.json").unlink(missing_ok=True)
        with self._guard:
            if self._stopped or job.method in self.outcomes.failed:
                return None
            process = subprocess.Popen(
                [sys.executable, "-m", "potstill.compare.worker", *words],
                stdin=subprocess.PIPE,  # closes when this process ends, however it ends
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                env={**os.environ, **one},
                start_new_session=True,  # Ctrl-C reaches it once, from here
                pass_fds=[] if self.lock is None else [self.lock],
            )
            self._running.add(process)
        return process

    def _message(self, job: Job, code: int, lines: Sequence[str]) -> str:
        path = self.place.cell(job) / "failed.json"
        if path.is_file():
            return str(json.loads(path.read_text(encoding="utf-8"))["message"])
        if code < 0:
            return f"its process was ended by {signal.Signals(-code).name}; too little memory, perhaps"
        return f"its process ended with code {code}: {lines[-1] if lines else 'no message'}"

    def stop(self) -> None:
        """Let every process save and end; none starts any more."""
        with self._guard:
            self._stopped = True
            for process in self._running:
                process.send_signal(signal.SIGINT)
