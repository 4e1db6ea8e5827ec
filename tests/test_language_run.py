"""A language model from recipe to report: a character-level teacher of two layers, in seconds."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from potstill.compare import compare_methods
from potstill.config import dump, from_mapping, load, parse_yaml
from potstill.errors import UserError
from potstill.models.causal import load_causal
from potstill.run import load_student, run
from tests.books import recipe_beside_a_book

RECIPE = """task: language_modeling
data: {path: book.txt, split_at: "^# ", tokenizer: characters, max_length: 32}
teacher: {model: "potstill.models.characters:tiny_llama", arguments: {layers: 2, hidden: 32, heads: 2}}
student: {model: teacher, init: {layers: [1]}}
correct: {steps: 40, learning_rate: 0.02}
distill: {labels: {weight: 0.3}, kl: {weight: 0.7, temperature: 1}}
train: {steps: 6, batch_size: 4, optimizer: adamw, learning_rate: 0.01, precision: float32}
"""


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return recipe_beside_a_book(RECIPE, tmp_path, monkeypatch)


def ran(recipe: Path, *overrides: str, **options: Any) -> tuple[dict[str, Any], list[str], Path]:
    lines: list[str] = []
    result = run(recipe, out=recipe.parent / "run", overrides=overrides, echo=lines.append, **options)
    return result.data, lines, result.folder


def test_a_whole_run(recipe: Path) -> None:
    data, _, folder = ran(recipe)
    models = data["models"]
    assert data["metric"] == "perplexity"
    assert data["higher_is_better"] is False
    assert models["teacher"]["perplexity"] < 8  # of about thirty characters: the correction taught it
    for arm in ("control", "student"):
        found = models[arm]
        low, high = found["interval"]
        assert low < found["perplexity"] < high
        assert 0 < found["acceptance"] < 1
        assert 0 < found["agreement"] < 1
        assert found["kl_to_teacher"] > 0
        assert 0 < found["drafts"]["rate"] < 1
        alike = found["likeness"]
        assert alike["rouge_l_interval"][0] <= alike["rouge_l"] <= alike["rouge_l_interval"][1]
        assert 0 < alike["own_kl_interval"][0] < alike["own_kl"]
        assert found["documents"] == 4
    gain = np.log(models["control"]["perplexity"]) - np.log(models["student"]["perplexity"])
    assert data["gain"] == pytest.approx(gain, rel=1e-4)
    content = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    assert set(content["divergences"]) == {"position", "frequency"}
    assert [set(row) for row in content["generations"]] == [{"prompt", "teacher", "control", "student"}] * 3
    page = (folder / "report.html").read_text(encoding="utf-8")
    for heading in ("Where it differs from its teacher", "What it writes", "nats a token", "ROUGE-L"):
        assert heading in page
    _check_student(folder)
    rows = (folder / "checkpoints" / "teacher").iterdir()
    assert [path.name for path in rows] == ["corrected.safetensors"]
    loaded = load_student(folder, recipe.parent)
    assert loaded.teacher is not None


def _check_student(folder: Path) -> None:
    """What is saved for transformers answers as what is saved for Potstill."""
    saved = load_causal("student", [folder], "student").eval()
    loaded = load_student(folder, folder.parent).student
    assert len(saved.model.layers) == 1
    ids = torch.arange(8)[None]
    with torch.no_grad():
        torch.testing.assert_close(saved(input_ids=ids).logits, loaded(input_ids=ids).logits)
    assert "barley" in saved.tokenizer.decode(saved.tokenizer("barley of barley")["input_ids"])


def test_a_run_goes_on_with_its_corrected_teacher(recipe: Path) -> None:
    first, _, folder = ran(recipe)
    (folder / "report.html").unlink()
    again, _, _ = ran(recipe, resume=True)
    for arm in ("teacher", "control", "student"):
        assert again["models"][arm]["perplexity"] == first["models"][arm]["perplexity"]


def test_a_correction_may_have_its_own_batch_size(recipe: Path) -> None:
    """The teacher does not change with the students' batches where the correction names its own."""
    found = []
    for number, batch_sizes in enumerate([("4", None), ("2", "4"), ("2", None)]):
        own = [f"correct.batch_size={batch_sizes[1]}"] if batch_sizes[1] else []
        out = recipe.parent / str(number)
        overrides = (f"train.batch_size={batch_sizes[0]}", "train.steps=2", "correct.steps=4", *own)
        result = run(recipe, out=out, overrides=overrides, echo=lambda line: None, control=False)
        found.append(result.data["models"]["teacher"]["perplexity"])
    assert found[0] == found[1] != found[2]


def test_a_teacher_that_is_worse_than_the_control_is_told_with_both_numbers(recipe: Path) -> None:
    data, lines, _ = ran(recipe, "correct.steps=4", "train.steps=40", "train.learning_rate=0.03")
    told = [line for line in lines if line.startswith("warning: the teacher")]
    numbers = [f"{data['models'][arm]['perplexity']:.2f}" for arm in ("teacher", "control")]
    assert len(told) == 1
    assert all(number in told[0] for number in numbers)


def test_a_comparison_does_not_pass_over_the_correction(recipe: Path) -> None:
    with pytest.raises(UserError, match="correct: has no meaning in a comparison yet"):
        compare_methods(recipe, "kl", out=recipe.parent / "compared")


def test_a_dry_run_trains_nothing(recipe: Path) -> None:
    _, lines, folder = ran(recipe, dry=True)
    assert not folder.exists()
    assert any("learnt tokens in rows of 32" in line for line in lines)


def test_the_recipe_is_read_and_written(recipe: Path) -> None:
    loaded = load(recipe)
    assert from_mapping(parse_yaml(dump(loaded), "again")) == loaded
    for name in ("smollm2-half", "shakespeare-characters"):
        assert load(name).task == "language_modeling"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.split_at=^X"], "data.split_at: '\\^X' matches nowhere"),
        (["data.path=none.txt"], "data.path: 'none.txt' not found"),
        (["data.path=null"], "data.path: missing"),
        (["data.split_at=null"], "data.test: missing, and the training part has 1 document"),
        (["data.tokenizer=null"], "teacher.arguments: .*vocab_size"),
        (["student.init.layers=[7]"], "student.init.layers: expected ascending numbers below 2"),
        (["teacher=null", "correct=null", "distill={labels: {}}"], "teacher: missing"),
        (["data.files={dev: a}"], "data.files.dev: expected one of train, validation, test"),
        (["data.max_length=1"], "data.max_length: must be >= 2"),
        (["data.max_length=300"], "data.max_length: must be at most 256, the context of a network, got 300"),
        (["correct.learning_rate=0"], "correct.learning_rate: must be > 0"),
        (["correct.rate=1"], "correct.rate: unknown key"),
        (
            [
                "teacher=null",
                "scheme=labels",
                "distill={labels: {}}",
                "student.model=a:b",
                "student.init=null",
            ],
            "correct: has no meaning without a teacher",
        ),
    ],
)
def test_what_cannot_be_learnt_is_named(recipe: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ran(recipe, *overrides)


def test_a_teacher_with_another_tokenizer_is_refused(recipe: Path) -> None:
    from potstill.models.causal import save_huggingface
    from potstill.models.characters import character_tokenizer, tiny_llama

    tokenizer = character_tokenizer("something else")
    save_huggingface(tiny_llama(len(tokenizer), hidden=16, heads=2), tokenizer, recipe.parent / "other")
    with pytest.raises(UserError, match="teacher: another tokenizer than the teacher's") as found:
        ran(recipe, "teacher={model: 'transformers:other'}", "correct=null")
    assert "tokens differ, the first at" in str(found.value)


def test_a_token_that_a_network_lacks_is_named(recipe: Path) -> None:
    from potstill.models.causal import save_huggingface
    from potstill.models.characters import character_tokenizer, tiny_llama

    tokenizer = character_tokenizer("".join(map(chr, range(32, 127))) + "\n")
    save_huggingface(tiny_llama(len(tokenizer), hidden=16, heads=2), tokenizer, recipe.parent / "plain")
    size = len(tokenizer)
    tokenizer.add_tokens(["<late>"])
    tokenizer.save_pretrained(recipe.parent / "longer")
    late = "barley " * 200 + "<late>"  # beyond what is compared of each text
    (recipe.parent / "texts.jsonl").write_text("\n".join([json.dumps({"text": late})] * 12), encoding="utf-8")
    overrides = [
        "teacher={model: 'transformers:plain'}",
        "data={path: texts.jsonl, tokenizer: longer, max_length: 64}",
    ]
    message = f"data.tokenizer: the texts hold token {size}, and a network knows {size}"
    with pytest.raises(UserError, match=message):
        ran(recipe, *overrides, "student={model: teacher}", "correct=null", dry=True)


def test_an_encoder_is_no_language_model(recipe: Path) -> None:
    import transformers

    from potstill.models.characters import character_tokenizer
    from tests.books import book

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    words = len(character_tokenizer(book()))
    config = transformers.BertConfig(vocab_size=words, initializer_range=0.3, **sizes)
    transformers.BertLMHeadModel(config).save_pretrained(recipe.parent / "encoder")
    character_tokenizer(book()).save_pretrained(recipe.parent / "encoder")
    with pytest.raises(
        UserError, match=r"^student\.model: BertLMHeadModel looks at the tokens that it is to"
    ):
        ran(recipe, "teacher={model: 'transformers:encoder'}", "student={model: teacher}", dry=True)


@pytest.mark.parametrize(
    ("library", "overrides", "message"),
    [
        ("transformers", [], "task: transformers is not installed: pip install 'potstill"),
        ("peft", ["student.lora=4"], r"student\.lora: peft is not installed: pip install 'potstill"),
        (
            "gguf",
            ["teacher.model=transformers:a.gguf", "teacher.arguments={}"],
            "teacher: gguf is not installed",
        ),
    ],
)
def test_a_library_that_is_missing_is_named(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, library: str, overrides: list[str], message: str
) -> None:
    (recipe.parent / "a.gguf").touch()
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(UserError, match=message):
        ran(recipe, *overrides, dry=True)


def test_documents_without_text_are_left_out_and_told(recipe: Path) -> None:
    rows = [json.dumps({"text": text}) for text in ["barley of barley", " \n"] * 12]
    (recipe.parent / "texts.jsonl").write_text("\n".join(rows), encoding="utf-8")
    _, lines, _ = ran(recipe, "data.path=texts.jsonl", "train.batch_size=1", dry=True)
    assert any("12 documents of train have no text, the first at" in line for line in lines)
    assert any("texts.jsonl, line 2; they are left out" in line for line in lines)


def test_conversations_too_long_for_a_row_are_left_out_and_told(recipe: Path) -> None:
    def talk(question: str) -> str:
        turns = [{"role": "user", "content": question}, {"role": "assistant", "content": "yes"}]
        return json.dumps({"messages": turns})

    template = (
        "{% for m in messages %}<{{ m['role'][0] }}>{{ m['content'] }}{% endfor %}"
        "{% if add_generation_prompt %}<a>{% endif %}"
    )
    from potstill.models.causal import save_huggingface
    from potstill.models.characters import character_tokenizer, tiny_llama

    tokenizer = character_tokenizer("<>abcdefghijklmnopqrstuvwxyz? ")
    tokenizer.chat_template = template
    save_huggingface(tiny_llama(len(tokenizer), hidden=16, heads=2), tokenizer, recipe.parent / "chatty")
    rows = [talk("is it so?"), talk("long " * 10)] * 12
    (recipe.parent / "talks.jsonl").write_text("\n".join(rows), encoding="utf-8")
    overrides = [
        "data={path: talks.jsonl, max_length: 32}",
        "teacher={model: 'transformers:chatty'}",
        "train.batch_size=1",
    ]
    _, lines, _ = ran(
        recipe, *overrides, "student={model: teacher, init: {layers: [0]}}", "correct=null", dry=True
    )
    assert any("have nothing to learn within data.max_length (32 tokens" in line for line in lines)
