"""Public benchmarks: a stand-in with the interface of lm-evaluation-harness 0.4.13, which is optional."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from potstill.errors import UserError
from potstill.run import run
from tests.books import recipe_beside_a_book

RECIPE = """task: language_modeling
data: {path: book.txt, split_at: "^# ", tokenizer: characters, max_length: 32}
teacher: {model: "potstill.models.characters:tiny_llama", arguments: {layers: 2, hidden: 32, heads: 2}}
student: {model: teacher, init: {layers: [1]}}
correct: {steps: 20, learning_rate: 0.02}
distill: {labels: {weight: 0.3}, kl: {weight: 0.7, temperature: 1}}
train: {steps: 2, batch_size: 4, optimizer: adamw, learning_rate: 0.01, precision: float32}
evaluation: {harness: [spirits], limit: 3}
"""

HARNESS = {
    "__init__.py": """
import random
from .tasks import QUESTIONS


def simple_evaluate(model, tasks, limit, task_manager, log_samples, random_seed, numpy_random_seed,
                    torch_random_seed, fewshot_random_seed):
    random.seed(random_seed)
    if "broken" in tasks:
        raise RuntimeError("out of questions")
    say = model.loglikelihood
    right = [say(begin, true) > say(begin, false) for begin, true, false in QUESTIONS[:limit]]
    share = sum(right) / len(right)
    row = {"alias": "spirits", "name": "spirits", "sample_len": len(right), "acc,none": share,
           "acc_stderr,none": 0.25, "exact_match,strict-match": 1, "exact_match_stderr,strict-match": "N/A"}
    return {"results": {"spirits": row}, "groups": {"cellar": {"alias": "cellar", "acc,none": share,
            "acc_stderr,none": 0.25, "sample_count": {"acc,none": 3}}},
            "n-samples": {"spirits": {"original": 4, "effective": len(right)}}}
""",
    "tasks.py": """
QUESTIONS = [(f"{word} ", "of ", "kkk") for word in ("wort", "cask", "mash", "still")]


class Task:
    def __init__(self, unsafe=False):
        self.UNSAFE_CODE = unsafe


class TaskManager:
    all_tasks = ["spirits", "broken", "absent", "unsafe"]

    def load(self, names):
        if "absent" in names:
            raise FileNotFoundError("no data set spirits/absent")
        return {"tasks": {name: Task(name == "unsafe") for name in names}}
""",
    "models/__init__.py": "",
    "models/huggingface.py": """
import torch


class HFLM:
    def __init__(self, pretrained, tokenizer, batch_size):
        assert isinstance(batch_size, int)
        self.model, self.tokenizer = pretrained.eval(), tokenizer
        self.model.tie_weights()
        tokenizer.pad_token = tokenizer.unk_token

    @torch.no_grad()
    def loglikelihood(self, begin, end):
        before = len(self.tokenizer(begin)["input_ids"])
        ids = torch.tensor([self.tokenizer(begin + end)["input_ids"]], device=self.model.device)
        logs = self.model(ids).logits.log_softmax(-1)[0, before - 1 : -1]
        return logs.gather(1, ids[0, before:, None]).mean().item()
""",
}


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, text in HARNESS.items():
        file = tmp_path / "library" / "lm_eval" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    for name in [name for name in sys.modules if name.partition(".")[0] == "lm_eval"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path / "library")
    return recipe_beside_a_book(RECIPE, tmp_path, monkeypatch)


@pytest.fixture(autouse=True)
def forgotten() -> Any:
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "lm_eval"]:
        del sys.modules[name]


def ran(recipe: Path, *overrides: str) -> tuple[dict[str, Any], Path]:
    result = run(recipe, out=recipe.parent / "run", overrides=overrides, echo=lambda line: None)
    return result.data, result.folder


def test_every_network_is_asked_and_the_figures_are_told(recipe: Path) -> None:
    data, folder = ran(recipe)
    for arm in ("teacher", "control", "student"):
        found = data["models"][arm]["harness"]
        assert set(found) == {"spirits", "cellar"}
        assert found["spirits"]["acc"]["samples"] == 3
        assert found["spirits"]["acc"]["error"] == 0.25
        assert found["spirits"]["exact_match, strict-match"] == {"value": 1.0, "error": None, "samples": 3}
        assert found["cellar"]["acc"]["samples"] is None
        assert set(found["spirits"]) == {"acc", "exact_match, strict-match"}
    values = {
        arm: data["models"][arm]["harness"]["spirits"]["acc"]["value"] for arm in ("teacher", "control")
    }
    assert (
        values["teacher"] == 1.0
    )  # of what follows a word it knows so much: the networks themselves were asked
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "Public benchmarks" in page
    assert "1 ± 0.25" in page
    saved = json.loads((folder / "student" / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert saved["pad_token"] == "<end>"  # the harness's own padding stays with its copy


def test_updates_are_asked_as_the_network_that_they_make(recipe: Path) -> None:
    data, _ = ran(recipe, "student.lora=2", "evaluation.limit=null")
    assert data["models"]["student"]["harness"]["spirits"]["acc"]["samples"] == 4


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["evaluation.harness=[spirit]"], "evaluation.harness: no task 'spirit'; did you mean 'spirits'"),
        (["evaluation.harness=[mine.yaml]"], "evaluation.harness: 'mine.yaml' not found"),
        (
            ["evaluation.harness=[absent]"],
            "evaluation.harness: cannot load absent: no data set spirits/absent",
        ),
        (["evaluation.harness=[unsafe]"], "evaluation.harness: unsafe runs code that a network wrote"),
        (["evaluation.limit=0"], "evaluation.limit: must be >= 1"),
        (["evaluation.harnes=[spirits]"], "evaluation.harnes: unknown key; did you mean 'harness'"),
        (
            [
                "student={model: 'mine.py:own'}",
                "correct=null",
                "teacher=null",
                "scheme=labels",
                "distill={labels: {}}",
            ],
            "evaluation.harness: needs networks of transformers, and student.model is a Own",
        ),
    ],
)
def test_what_cannot_be_asked_is_named_before_training(
    recipe: Path, overrides: list[str], message: str
) -> None:
    (recipe.parent / "mine.py").write_text(
        "from torch import nn\n\n\nclass Own(nn.Module):\n"
        "    def __init__(self, size):\n        super().__init__()\n"
        "        self.inner = nn.Embedding(size, size)\n\n"
        "    def forward(self, input_ids, position_ids=None):\n        return self.inner(input_ids)\n\n\n"
        "def own(vocab_size):\n    return Own(vocab_size)\n",
        encoding="utf-8",
    )
    with pytest.raises(UserError, match=message):
        ran(recipe, *overrides)
    assert not (recipe.parent / "run" / "metrics.jsonl").exists()


def test_a_harness_that_fails_after_training_costs_no_result(recipe: Path) -> None:
    data, folder = ran(recipe, "evaluation.harness=[broken]")
    assert data["verdict"] is not None
    assert "harness" not in data["models"]["student"]
    notes = json.loads((folder / "report.json").read_text(encoding="utf-8"))["notes"]
    assert "evaluation.harness: lm-evaluation-harness failed: RuntimeError: out of questions" in notes


def test_without_the_harness_it_says_what_to_install(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(
        UserError, match=r"lm-evaluation-harness is not installed: pip install 'potstill\[harness\]'"
    ):
        ran(recipe)
