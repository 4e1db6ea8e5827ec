"""A teacher answers prompts, and a student learns its answers: from recipe to result, in seconds."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from potstill.answering import answer_prompts
from potstill.assembly.load import load_experiment
from potstill.compare import compare_methods
from potstill.config import load
from potstill.errors import UserError
from potstill.models.causal import save_huggingface
from potstill.models.characters import character_tokenizer, tiny_llama
from potstill.responses import asking
from potstill.run import run
from tests.books import recipe_beside_a_book
from tests.test_language_run import RECIPE

RESPONSES = RECIPE.replace(
    "hidden: 32, heads: 2}}\n",
    "hidden: 32, heads: 2}, responses: {max_new_tokens: 12, prompt_tokens: 6, limit: 20, batch_size: 8, "
    "path: answers}}\n",
)
TEMPLATE = (
    "{% for m in messages %}<{{ m['role'][0] }}>{{ m['content'] }}<end>{% endfor %}"
    "{% if add_generation_prompt %}<a>{% endif %}"
)


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return recipe_beside_a_book(RESPONSES, tmp_path, monkeypatch)


def ran(recipe: Path, *overrides: str, **options: Any) -> tuple[dict[str, Any], list[str], Path]:
    lines: list[str] = []
    result = run(recipe, out=recipe.parent / "run", overrides=overrides, echo=lines.append, **options)
    return result.data, lines, result.folder


def test_the_student_learns_the_answers_of_the_corrected_teacher(recipe: Path) -> None:
    data, lines, folder = ran(recipe)
    assert data["models"]["student"]["perplexity"] < data["models"]["control"]["perplexity"] * 3
    assert any("the control the texts as they are" in line for line in lines)
    stored = (recipe.parent / "answers" / "answers-0.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(stored) == 20
    rows = [json.loads(line.split(" ", 1)[1]) for line in stored]
    some = sum(any(each["text"].strip() for each in row["answers"]) for row in rows)
    assert some > 10  # an answer that ends at once is none
    assert f"note: train: {some} of 20 prompts have an answer of the teacher's" in "\n".join(lines)
    assert all(len(each["ids"]) <= 12 for row in rows for each in row["answers"])
    assert all(each["likelihood"] < 0 for row in rows for each in row["answers"])
    (folder / "report.html").unlink()
    again, _, _ = ran(recipe, resume=True)  # nothing is asked anew
    assert again["models"]["student"]["perplexity"] == data["models"]["student"]["perplexity"]
    assert len((recipe.parent / "answers" / "answers-0.jsonl").read_text().splitlines()) == 20


def answered(recipe: Path, *overrides: str) -> Any:
    overrides = ("correct=null", *overrides)
    torch.manual_seed(0)  # a teacher that nobody corrected has random weights
    return answer_prompts(load_experiment(load(recipe, overrides), [recipe.parent]), lambda line: None)


def test_a_killed_run_goes_on_prompt_by_prompt(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = answered(recipe).lessons.packed
    path = recipe.parent / "answers" / "answers-0.jsonl"
    content = path.read_bytes()
    lines = content.splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:11]) + lines[11][:40])  # killed within the second group of eight
    asked = []
    monkeypatch.setattr(asking, "write", _counted(asked))
    again = answered(recipe).lessons.packed
    assert sum(asked) == 12  # what is left of the second group is written with it, and the third
    assert set(path.read_bytes().splitlines()) >= set(content.splitlines())
    assert (again.tokens == whole.tokens).all()
    asked.clear()
    answered(recipe)
    assert asked == []


def _counted(asked: list[int]) -> Any:
    from potstill.models.generation import write

    def counting(network: Any, prompts: Any, **options: Any) -> Any:
        asked.append(len(prompts))
        return write(network, prompts, **options)

    return counting


def test_responses_alone(recipe: Path) -> None:
    data, lines, folder = ran(recipe, "correct=null", only="responses")
    assert data == {}
    assert not folder.exists()
    assert any("of 20 prompts have an answer" in line for line in lines)
    with pytest.raises(UserError, match="--only: responses: the teacher is corrected in a run first"):
        ran(recipe, only="responses")
    with pytest.raises(UserError, match=r"teacher\.responses: missing"):
        ran(recipe, "correct=null", "teacher.responses=null", only="responses")


def test_the_likeliest_of_several_is_learnt_where_it_is_kept(recipe: Path) -> None:
    (recipe.parent / "mine.py").write_text(
        "def keep(prompt, text):\n    return not set('aeiou') & set(text)\n"
    )
    one = answered(recipe, "teacher.responses.path=null")
    some = answered(recipe, "teacher.responses.samples=4", "teacher.responses.keep=mine.py:keep")
    stored = [
        json.loads(line.split(" ", 1)[1])
        for line in (recipe.parent / "answers" / "answers-0.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert all(len(row["answers"]) == 4 for row in stored)
    best = [
        max(kept, key=lambda each: each["likelihood"])
        for row in stored
        if (
            kept := [
                each
                for each in row["answers"]
                if not set("aeiou") & set(each["text"]) and each["text"].strip()
            ]
        )
    ]
    learnt = some.lessons.packed
    assert learnt.counted.sum() == sum(len(each["ids"]) for each in best)
    assert len(best) < len(stored)
    assert any("keep refused" in note for note in some.notes)
    assert one.lessons.documents <= 20
    with pytest.raises(UserError, match="another samples: 4 there, 1 here"):
        answered(recipe)


def test_prompts_without_answers_are_answered_in_every_part(recipe: Path) -> None:
    tokenizer = character_tokenizer("<>abcdefghijklmnopqrstuvwxyz? ")
    tokenizer.chat_template = TEMPLATE
    save_huggingface(tiny_llama(len(tokenizer), hidden=16, heads=2), tokenizer, recipe.parent / "chatty")
    talks = [{"messages": [{"role": "user", "content": f"is {word} so?"}]} for word in "abcdefghijklmnop"]
    plain = [{"prompt": f"what is {word}? "} for word in "abcdefgh"]
    long = [{"prompt": "so long " * 10}]
    rows = "\n".join(json.dumps(row) for row in [*talks, *plain, *long])
    (recipe.parent / "asked.jsonl").write_text(rows, encoding="utf-8")
    overrides = [
        "data={path: asked.jsonl, max_length: 32}",
        "teacher.model=transformers:chatty",
        "teacher.arguments={}",
        "student={model: teacher, init: {layers: [0]}}",
        "train.batch_size=2",
        "teacher.responses.limit=null",
    ]
    made = answered(recipe, *overrides)
    assert made.lessons is None  # both arms learn the answers: there are no others
    assert made.splits.test.documents >= 2
    packed = made.splits.train.packed
    text = tokenizer.batch_decode(
        [row[seen] for row, seen in zip(packed.tokens, packed.documents >= 0, strict=True)]
    )
    assert any("<u>is" in each for each in text)
    assert any("the control too" in note for note in made.notes)
    assert any(
        "1 prompts leave no room for an answer within data.max_length (32" in note for note in made.notes
    )
    with pytest.raises(UserError, match=r"no turn of the assistant.*; teacher\.responses lets"):
        answered(recipe, *overrides, "teacher.responses=null")
    with pytest.raises(UserError, match="correct: has no meaning where training documents lack answers"):
        load_experiment(load(recipe, overrides), [recipe.parent])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["train.steps=null"], r"train\.steps: missing; student and control learn from different texts"),
        (["teacher.responses.max_new_tokens=400"], "the longest prompt and its answer have 406 tokens"),
        (["teacher.responses.prompt_tokens=400"], "no training document has a prompt that fits"),
        (["train.batch_size=17"], r"train\.batch_size: must be at most the \d+ rows of answers"),
    ],
)
def test_what_cannot_be_answered_is_named(recipe: Path, overrides: list[str], message: str) -> None:
    shutil.rmtree(recipe.parent / "answers", ignore_errors=True)
    with pytest.raises(UserError, match=message):
        answered(recipe, *overrides)


def test_a_comparison_refuses_answers(recipe: Path) -> None:
    with pytest.raises(UserError, match=r"teacher\.responses: has no meaning in a comparison yet"):
        compare_methods(recipe, "kl", out=recipe.parent / "compared")
