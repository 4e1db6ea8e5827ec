"""Prune, distil, repeat, for a language model and an encoder of transformers: tiny ones, in seconds."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from potstill import measure
from potstill.assembly.load import load_experiment
from potstill.config import load
from potstill.errors import UserError
from potstill.prune.family_parts import family_structure
from potstill.prune.importance import UNIT_KINDS, unit_scores
from potstill.rounds import deciding
from potstill.rounds.calibration import Calibration
from potstill.run import load_student, run
from potstill.train.loop import Training
from tests.books import recipe_beside_a_book
from tests.tasks import text

pytest.importorskip("transformers")

RECIPE = """task: language_modeling
data: {path: book.txt, split_at: "^# ", tokenizer: characters, max_length: 32}
teacher: {model: "potstill.models.characters:tiny_llama", arguments: {layers: 3, hidden: 32, heads: 4}}
correct: {steps: 30, learning_rate: 0.02}
prune: {target: {parameters: 0.6}, steps: 2, axes: [layers, mlp, heads], calibration: 8, candidates: 3,
  multiple: 4, trial_steps: 2}
distill: {labels: {weight: 0.3}, kl: {weight: 0.7, temperature: 1}}
train: {steps: 6, batch_size: 4, optimizer: adamw, learning_rate: 0.01, precision: float32,
  checkpoint_every: 2}
"""


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return recipe_beside_a_book(RECIPE, tmp_path, monkeypatch)


def ran(recipe: Path, *overrides: str, out: str = "run", **options: Any) -> Any:
    torch.manual_seed(0)  # the teacher starts from random weights, whatever ran before
    return run(
        recipe, out=recipe.parent / out, overrides=overrides, echo=options.pop("echo", print), **options
    )


LOAD = """
import sys, torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1]).eval()
wanted = torch.load(sys.argv[2], weights_only=True)
with torch.no_grad():
    assert (model(torch.arange(8)[None]).logits - wanted).abs().max() == 0
assert not any(name.startswith("potstill") for name in sys.modules)
"""


def test_a_language_model_is_pruned_in_rounds_and_loads_anywhere(recipe: Path) -> None:
    result = ran(recipe, "prune.rivals=[scratch, one_shot]")
    found, models = result.data["prune"], result.data["models"]
    assert found["reached"] == models["student"]["parameters"] <= 0.6 * models["teacher"]["parameters"]
    assert len(found["rounds"]) == 2
    folder = result.folder
    student = load_student(folder, recipe.parent).student
    first = load_student(folder, recipe.parent, round_number=1).student
    assert measure.parameters(first) == found["rounds"][0]["cost"] > measure.parameters(student)
    with torch.no_grad():
        torch.save(student(torch.arange(8)[None]).logits, folder / "logits.pt")
    subprocess.run(
        [sys.executable, "-c", LOAD, str(folder / "student"), str(folder / "logits.pt")], check=True
    )
    teacher, start = models["teacher"]["perplexity"], found["start"]["perplexity"]
    share = np.log(start / models["student"]["perplexity"]) / np.log(start / teacher)
    assert found["regained"]["student"]["share"] == pytest.approx(share, rel=1e-4)
    low, high = found["regained"]["student"]["interval"]
    assert low < share < high
    assert set(found["rivals"]) == {"scratch", "one_shot"}
    for rival in found["rivals"].values():
        assert rival["gain"] == pytest.approx(
            np.log(rival["perplexity"]) - np.log(models["student"]["perplexity"]), rel=1e-4
        )


def test_importance_alone_is_scored_drawn_and_read_again(
    recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = ran(recipe, only="importance")
    found = json.loads((result.folder / "importance" / "importance.json").read_text())
    assert set(found["curves"]) == {"layers", "mlp", "heads"}
    for points in found["curves"].values():
        shares = [share for share, _ in points]
        assert shares[0] == 0
        assert shares == sorted(set(shares))
        assert points[0][1] == pytest.approx(found["curves"]["layers"][0][1])
    assert len(found["blocks"]) == 3
    assert [len(row["scores"]) for row in found["units"]["heads"]] == [4, 4, 4]
    page = (result.folder / "importance" / "importance.html").read_text()
    assert "Loss against share removed" in page
    scores = sorted(result.folder.glob("importance/scores-*"))

    def computed(*_: Any) -> Any:
        raise AssertionError("scores of the original are there already")

    monkeypatch.setattr(deciding, "unit_scores", computed)
    with pytest.raises(AssertionError, match="there already"):  # only those of the second round are missing
        ran(recipe, "correct.steps=1", "train.steps=1", "prune.trial_steps=0")
    assert (result.folder / "rounds" / "1" / "round.json").is_file()
    assert sorted(result.folder.glob("importance/scores-*")) == scores


GPT = """
import transformers


def made(vocab_size: int):
    return transformers.GPTNeoXForCausalLM(
        transformers.GPTNeoXConfig(
            vocab_size=vocab_size, hidden_size=32, num_hidden_layers=3, num_attention_heads=4,
            intermediate_size=64, max_position_embeddings=64, bos_token_id=0, eos_token_id=0,
        )
    )
"""
SHORT = ("prune.steps=1", "prune.trial_steps=0", "train.steps=1", "correct.steps=1")


def test_a_model_of_an_unknown_family_is_loaded_by_potstill_alone(recipe: Path) -> None:
    (recipe.parent / "gpt.py").write_text(GPT)
    lines: list[str] = []
    teacher = ("teacher.model='gpt.py:made'", "teacher.arguments={}", "prune.target={parameters: 0.7}")
    result = ran(recipe, *SHORT, *teacher, "prune.axes=[layers]", "correct.steps=20", echo=lines.append)
    assert any("of no family that is known here" in line and "only Potstill" in line for line in lines)
    assert not (result.folder / "student").exists()  # its configuration would make another network
    student = load_student(result.folder, recipe.parent).student
    assert measure.parameters(student) == result.data["prune"]["reached"]
    tokens = torch.arange(8)[None]
    with torch.no_grad():
        assert torch.equal(student(tokens).logits, result.student(tokens).logits)


def test_magnitude_warns_of_itself(recipe: Path) -> None:
    lines: list[str] = []
    ran(recipe, "prune.importance=magnitude", dry=True, echo=lines.append)
    assert any("magnitude is there to compare with" in line for line in lines)
    lines.clear()
    ran(recipe, dry=True, echo=lines.append)
    assert not any("magnitude" in line for line in lines)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["student={model: teacher, lora: {rank: 2}}"], r"student\.lora: has no meaning beside prune"),
        (["prune.target={tokens_per_second: 1e12}"], r"smallest .* is .* ms \(.* tokens a second\)"),
        (["prune.axes=[heads, kv_groups]"], r"prune\.axes: expected heads or kv_groups, got both"),
    ],
)
def test_what_a_recipe_of_texts_may_not_ask(recipe: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ran(recipe, *overrides, dry=True)


def encoder(tmp_path: Path, **prune: Any) -> Path:
    """A project whose teacher is a BERT of four layers with two heads each."""
    root = text.project(tmp_path / "texts")
    (root / "teacher.yaml").write_text(json.dumps(text.TEACHER))
    run(root / "teacher.yaml", data=root, out=root / "taught", echo=lambda line: None)
    section = {"calibration": 16, "candidates": 1, "trial_steps": 0, "steps": 1, **prune}
    recipe = text.student_of(prune=section, distill={"kl": {}, "hidden_states": {}})
    del recipe["student"]
    (root / "student.yaml").write_text(json.dumps(recipe))
    return root


def test_an_encoder_loses_half_its_heads_and_neurons(tmp_path: Path) -> None:
    root = encoder(tmp_path, target={"parameters": 0.575}, axes=["mlp", "heads"], keep=0.5)
    lines: list[str] = []
    result = run(root / "student.yaml", data=root, out=root / "run", echo=lines.append)
    assert any("only Potstill can load what is left" in line for line in lines)
    student = load_student(root / "run", root).student
    assert measure.parameters(student) == result.data["prune"]["reached"]
    for layer in student.bert.encoder.layer:  # type: ignore[union-attr]
        assert layer.attention.self.query.weight.shape == (8, 16)
        assert layer.intermediate.dense.out_features == 16
    assert not (root / "run" / "student").exists()
    assert result.student is not None
    tokens = torch.tensor([[2, 5, 6, 3]])
    with torch.no_grad():
        assert torch.equal(student(tokens).logits, result.student(tokens).logits)


def test_an_encoder_loses_hidden_width(tmp_path: Path) -> None:
    root = encoder(
        tmp_path, target={"parameters": 0.6}, axes=["mlp", "hidden"], keep=0.5, importance="activation"
    )
    lines: list[str] = []
    result = run(root / "student.yaml", data=root, out=root / "run", echo=lines.append)
    assert sum("hidden width" in line and "only Potstill" in line for line in lines) == 1
    student = load_student(root / "run", root).student
    width = student.get_input_embeddings().embedding_dim  # type: ignore[operator]
    assert 8 <= width < 16
    assert measure.parameters(student) == result.data["prune"]["reached"]
    assert result.student is not None
    tokens = torch.tensor([[2, 5, 6, 3]])
    with torch.no_grad():
        assert torch.equal(student(tokens).logits, result.student(tokens).logits)


def test_scores_of_an_encoder_do_not_depend_on_who_shares_a_batch(tmp_path: Path) -> None:
    """Places that fill up a shorter text are none of its own: in batches of 8 and one by one, the same."""
    root = encoder(tmp_path, target={"parameters": 0.6})
    found = []
    for size in (8, 1):
        recipe = load(root / "student.yaml", [f"train.batch_size={size}"])
        calibration = Calibration(load_experiment(recipe, [root]), 16)
        model = calibration.experiment.fresh()
        lengths = {tuple(batch.inputs["student"]["input_ids"].shape[1:]) for batch in calibration.batches}
        assert len(lengths) > 1
        assert sum(map(len, calibration.batches)) == 16
        groups = family_structure(model, ["mlp", "heads"]).groups
        found.append({kind: unit_scores(model, groups, calibration, kind) for kind in UNIT_KINDS})
    for kind in UNIT_KINDS:
        for name, scores in found[0][kind].items():
            torch.testing.assert_close(scores, found[1][kind][name], rtol=1e-3, atol=1e-9)


@pytest.mark.parametrize("role", ["teacher", "student"])
def test_texts_in_other_tokens_than_a_network_learnt_are_refused(tmp_path: Path, role: str) -> None:
    root = text.project(tmp_path / "texts")
    text.bert_in(root / "taught")
    text.tokenizer_in(root / "other", ["good", "bad"])
    recipe = text.student_of(prune={"target": {"parameters": 0.6}}, distill={"kl": {}})
    recipe["student"] = {"model": "teacher"}
    recipe[role] = {**recipe[role], "tokenizer": "other"}
    (root / "student.yaml").write_text(json.dumps(recipe))
    with pytest.raises(
        UserError, match=rf"{role}\.tokenizer: is another than transformers:taught learnt with"
    ):
        run(root / "student.yaml", data=root, out=root / "run", echo=lambda line: None)


def test_an_encoder_of_fewer_neurons_and_layers_is_saved_for_any_loader(tmp_path: Path) -> None:
    root = encoder(tmp_path, target={"parameters": 0.6})
    run(root / "student.yaml", data=root, out=root / "run", echo=lambda line: None)
    config = json.loads((root / "run" / "student" / "config.json").read_text())
    assert config["num_hidden_layers"] < 4 or config["intermediate_size"] < 32


@pytest.mark.parametrize("saves", [5, 19])
def test_a_killed_run_goes_on_at_the_same_round_and_step(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, saves: int
) -> None:
    ran(recipe, out="whole")
    real, left = Training.save, [saves]

    def save(self: Training) -> None:
        real(self)
        left[0] -= 1
        if left[0] == 0:
            raise RuntimeError("killed")

    monkeypatch.setattr(Training, "save", save)
    with pytest.raises(RuntimeError, match="killed"):
        ran(recipe, out="cut")
    monkeypatch.setattr(Training, "save", real)
    ran(recipe, out="cut", resume=True)
    whole, cut = (load_file(recipe.parent / name / "student.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(whole[name], cut[name]) for name in whole)
    rows = [
        json.loads((recipe.parent / name / "result.json").read_text())["prune"] for name in ("whole", "cut")
    ]
    assert rows[0] == rows[1]
