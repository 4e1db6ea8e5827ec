"""Terms on the inside of decoders: hidden states of other widths, attention of packed rows, whole runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from potstill.assembly.load import load_experiment
from potstill.config import load

RECIPE = """task: language_modeling
data: {path: book.txt, split_at: "^# ", tokenizer: characters, max_length: 40}
teacher: {model: "potstill.models.characters:tiny_llama", arguments: {layers: 4, hidden: 32, heads: 2}}
student: {model: "potstill.models.characters:tiny_llama", arguments: {layers: 2, hidden: 16, heads: 2}}
correct: {steps: 1, learning_rate: 0.01}
distill: {labels: {weight: 1}, kl: {weight: 0.5, temperature: 1}}
train: {steps: 2, batch_size: 4, optimizer: adamw, learning_rate: 0.01, precision: float32}
"""


@pytest.fixture
def experiment(tmp_path: Path) -> Any:
    random = np.random.default_rng(0)
    lines = [f"# {number}\n{' '.join(random.choice(['ale', 'rum', 'gin'], 4))}\n" for number in range(60)]
    (tmp_path / "book.txt").write_text("".join(lines), encoding="utf-8")
    file = tmp_path / "recipe.yaml"
    file.write_text(RECIPE, encoding="utf-8")
    return lambda *overrides: load_experiment(load(file, overrides), [tmp_path])


def step_of(experiment: Any) -> Any:
    scheme = experiment.scheme("student", 0)
    loader, prepare = experiment.training(0)
    return scheme, scheme(prepare(*next(iter(loader.epoch(0))), 0))


def test_hidden_states_go_by_the_uniform_map_through_adapters_of_width(experiment: Any) -> None:
    loaded = experiment("distill.feature_cosine={weight: 1}")
    scheme, step = step_of(loaded)
    pairs = [(pair.student, pair.teacher) for pair in scheme.objective.plan]
    layers = [(f"model.layers.{ours}", f"model.layers.{theirs}") for ours, theirs in ((0, 1), (1, 3))]
    assert pairs == [("model.layers.0:input", "model.layers.0:input"), *layers]
    assert any("adapters" in name for name, _ in scheme.named_parameters())
    assert step.output.head is not None, "labels and kl come from hidden states beside it"
    assert set(step.parts) == {"labels", "kl", "feature_cosine"}
    step.loss.backward()
    assert all(
        parameter.grad is not None for name, parameter in scheme.named_parameters() if "adapters" in name
    )


def test_a_frozen_teacher_is_bf16_where_that_is_computed_in_and_the_student_is_not(experiment: Any) -> None:
    loaded = experiment("train.precision=bf16")
    assert {each.dtype for each in loaded.teacher.parameters()} == {torch.bfloat16}
    assert {each.dtype for each in loaded.student(0).parameters()} == {torch.float32}
    with loaded.precision.autocast(loaded.device):
        _, step = step_of(loaded)
    assert {each.mean.dtype for each in step.parts.values()} == {torch.float32}
    assert bool(torch.isfinite(step.loss))


def test_only_tokens_that_count_are_compared(experiment: Any) -> None:
    loaded = experiment("distill.feature_mse={weight: 1}")
    scheme = loaded.scheme("student", 0)
    loader, prepare = loaded.training(0)
    samples, target, index = next(iter(loader.epoch(0)))
    batch = prepare(samples, target, index, 0)
    assert batch.where is not None
    assert bool((~batch.where).any())
    before = scheme(batch).parts["feature_mse"].total
    ends = samples["input_ids"].clone()
    ends[:, -1] = (ends[:, -1] + 1) % 5  # what stands at a row's end predicts nothing
    other = prepare({**samples, "input_ids": ends}, target, index, 0)
    assert not bool(batch.where[:, -1].any())
    torch.testing.assert_close(scheme(other).parts["feature_mse"].total, before)


def test_attention_is_computed_so_that_it_can_be_seen_and_that_is_said(experiment: Any) -> None:
    loaded = experiment("distill.attention_maps={weight: 1}")
    assert any("attn_implementation='eager'" in note for note in loaded.notes)
    scheme, step = step_of(loaded)
    assert scheme.student.config._attn_implementation == "eager"
    assert [pair.student for pair in scheme.objective.plan] == [
        f"model.layers.{layer}.self_attn:attention" for layer in (0, 1)
    ]
    assert float(step.parts["attention_maps"].total.detach()) > 0
    step.loss.backward()
    assert not any("eager" in note for note in experiment().notes)


def test_attention_of_packed_rows_stays_within_its_document(experiment: Any) -> None:
    loaded = experiment("distill.attention_maps={weight: 1}")
    scheme = loaded.scheme("student", 0)
    loader, prepare = loaded.training(0)
    batch = prepare(*next(iter(loader.epoch(0))), 0)
    taps = scheme.parts["student"](batch.input("student")).taps
    attention = taps["model.layers.0.self_attn:attention"]
    begins = (batch.inputs["student"]["position_ids"] == 0).cumsum(1)
    across = begins[:, None, :, None] != begins[:, None, None, :]
    assert bool(across.any())
    assert float(attention.detach().masked_fill(~across, 0).abs().max()) == 0
