"""On-policy against off-policy at equal time: a character-level student of tinyshakespeare.

    python benchmarks/on_policy.py --out OUT

One teacher is trained first and teaches all, then a student off policy; from what that has learnt all ways
go on. The first takes ``--steps`` steps, the others as many as fit into the same processor seconds of
training, measured over a short run before (what else a busy machine does is not in them). Prints a row a way
of learning, with the likeness of the first seed's student over up to 200 prompts; what is finished in OUT is
not run again. Takes about five minutes of a slow core.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from potstill.measure import Stopwatch
from potstill.results import likeness
from potstill.run import run
from potstill.train import loop

RECIPE = "shakespeare-characters"
TRIED = 40
PROMPTS = 200
OWN = "share: 0.5, rise: 0.3, max_new_tokens: 24, prompt_tokens: 16"
LESSON = "distill={labels: {weight: 0.3}, %s: {weight: 0.7, temperature: 1}}"
WAYS = {
    "off-policy, kl": [LESSON % "kl"],
    "off-policy, reverse_kl": [LESSON % "reverse_kl"],
    "on-policy, kl": [LESSON % "kl", f"scheme={{kind: on_policy, {OWN}}}"],
    "on-policy, reverse_kl": [LESSON % "reverse_kl", f"scheme={{kind: on_policy, {OWN}}}"],
    "on-policy, reverse_kl, replay": [
        LESSON % "reverse_kl",
        f"scheme={{kind: on_policy, {OWN}, replay: 16, reuse: 0.75}}",
    ],
}


class Processor(Stopwatch):
    """Seconds of all threads of this process since it was made."""

    def __init__(self) -> None:
        self._start = time.process_time()

    @property
    def seconds(self) -> float:
        """Seconds so far."""
        return time.process_time() - self._start


def trained(out: Path, overrides: list[str]) -> tuple[dict[str, Any], float, int]:
    """The result of a run without control, its seconds of training and its steps."""
    result = run(RECIPE, out=out, overrides=overrides, control=False, resume=True, echo=lambda line: None)
    if result.interrupted:
        raise SystemExit("interrupted; the same command goes on")
    cells = [
        json.loads(path.read_text(encoding="utf-8"))
        for path in sorted((out / "checkpoints").glob("student-*/trained.json"))
    ]
    return result.data, sum(cell["seconds"] for cell in cells) / len(cells), cells[0]["steps"]


def report(name: str, steps: int, seconds: float, student: dict[str, Any]) -> None:
    alike = student["likeness"]
    print(
        f"{name}: {steps} steps, {seconds:.0f} s a seed; perplexity {student['perplexity']:.3f}, "
        f"KL on the data {student['kl_to_teacher']:.3f}, on own texts {alike['own_kl']:.3f} "
        f"{[round(each, 3) for each in alike['own_kl_interval']]}, ROUGE-L {alike['rouge_l']:.3f} "
        f"{[round(each, 3) for each in alike['rouge_l_interval']]}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seeds", type=int, default=2)
    options = parser.parse_args()
    loop.Stopwatch, likeness.PROMPTS = Processor, PROMPTS
    teaching = ["correct.steps=600", "train.steps=1", f"data.validation={PROMPTS}"]
    taught, _, _ = trained(options.out / "teacher", teaching)
    weights = options.out / "teacher" / "checkpoints" / "teacher" / "corrected.safetensors"
    common = ["correct=null", f"teacher.weights={weights.resolve()}", f"seeds={options.seeds}", teaching[-1]]
    print(f"teacher: perplexity {taught['models']['teacher']['perplexity']:.2f}")
    data, _, steps = trained(options.out / "start", [*common, LESSON % "kl", f"train.steps={options.steps}"])
    report("start: off-policy, kl", steps, 0.0, data["models"]["student"])
    common.append(f"student.weights={(options.out / 'start' / 'student.safetensors').resolve()}")
    budget = 0.0
    for number, (name, way) in enumerate(WAYS.items()):
        steps = options.steps
        if budget:
            short = [*common, *way, f"train.steps={TRIED}", "data.limit=600", "seeds=1"]
            _, seconds, tried = trained(options.out / f"tried-{number}", short)
            steps = max(1, round(budget / (seconds / tried)))
        data, seconds, steps = trained(options.out / str(number), [*common, *way, f"train.steps={steps}"])
        budget = budget or seconds
        report(name, steps, seconds, data["models"]["student"])


if __name__ == "__main__":
    main()
