"""A student's own texts: their rows and masks, what is learnt from them, and exact resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from potstill.batch import Batch, Signals
from potstill.errors import UserError
from potstill.losses import kl
from potstill.matching.objective import Objective
from potstill.models.characters import tiny_llama
from potstill.models.generation import own_batch
from potstill.run import run
from potstill.schemes import Offline, OnPolicy
from tests.books import book
from tests.test_language_run import RECIPE

END = 0


def supervised(signals: Signals, batch: Batch) -> Tensor:
    assert batch.target is not None, "labels of what the student wrote would be learnt"
    return cross_entropy(signals.output.transpose(1, 2), batch.target, reduction="none")


def rows() -> Batch:
    """A text, a text before another document, a conversation, and one cut text."""
    ids = torch.randint(2, 20, (4, 12), generator=torch.Generator().manual_seed(0))
    places = torch.arange(12).repeat(4, 1)
    places[1, 3:] = torch.arange(9)
    where = torch.ones(4, 12, dtype=torch.bool)
    where[:, -1] = False
    where[2, :7] = False  # a question of eight tokens
    where[1, 2] = False
    target = torch.roll(ids, -1, 1)
    return Batch({"student": {"input_ids": ids, "position_ids": places}}, target, where, torch.arange(4) + 8)


def scheme(**options: Any) -> OnPolicy:
    torch.manual_seed(0)
    student, teacher = (tiny_llama(20, layers=1, hidden=8, heads=2) for _ in range(2))
    inner = Offline(student, teacher, Objective({"kl": {"temperature": 1}}, supervised))

    def sample(network: nn.Module, batch: Batch, seed: list[int]) -> Batch:
        return own_batch(network, batch, seed, most=5, prompt_tokens=4)

    return OnPolicy(inner, sample, **options)


def test_rows_hold_the_prompt_and_what_was_written() -> None:
    torch.manual_seed(0)
    network = tiny_llama(20, layers=1, hidden=8, heads=2)
    batch = rows()
    made = own_batch(network, batch, [1], most=5, prompt_tokens=4)
    given, inputs = batch.inputs["student"], made.inputs["student"]
    assert isinstance(given, dict)
    assert isinstance(inputs, dict)
    assert made.target is None
    assert made.where is not None
    for row, prompt in enumerate((4, 2, 8, 4)):
        assert inputs["input_ids"][row, :prompt].tolist() == given["input_ids"][row, :prompt].tolist()
        written = inputs["input_ids"][row, prompt : prompt + 5].tolist()
        length = min(written.index(END) + 1 if END in written else 5, 12 - prompt)
        counted = made.where[row].nonzero()[:, 0].tolist()
        assert counted == list(range(prompt - 1, prompt - 1 + length))
    again = own_batch(network, batch, [1], most=5, prompt_tokens=4).inputs["student"]
    other = own_batch(network, batch, [2], most=5, prompt_tokens=4).inputs["student"]
    assert torch.equal(again["input_ids"], inputs["input_ids"])  # type: ignore[index]
    assert not torch.equal(other["input_ids"], inputs["input_ids"])  # type: ignore[index]


def test_no_row_goes_on_beyond_the_context() -> None:
    import transformers

    torch.manual_seed(0)
    sizes = {"n_positions": 12, "n_embd": 8, "n_layer": 1, "n_head": 2}
    network = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=20, bos_token_id=None, eos_token_id=None, **sizes)
    )
    batch = rows()
    made = own_batch(network, batch, [1], most=50, prompt_tokens=4)
    assert made.inputs["student"]["input_ids"].shape == (4, 12)  # type: ignore[index]


def test_the_teacher_judges_each_written_token_and_labels_are_silent() -> None:
    own = scheme(share=1.0)
    batch = rows()
    assert own.counts(batch).keys() == {"kl"}
    step = own(batch)
    assert step.parts.keys() == {"kl"}
    made = own.sample(own.student, batch, [0, 0, 8])
    assert step.parts["kl"].count == float(made.where.sum())  # type: ignore[union-attr]
    with torch.no_grad():
        answers = [
            network(**made.inputs["student"]).logits
            for network in (own.student, own.inner.teacher.network)  # type: ignore[union-attr]
        ]
    expected = kl(answers[0], answers[1], temperature=1.0)[made.where].mean()
    torch.testing.assert_close(step.parts["kl"].mean.detach(), expected)
    step.loss.backward()  # type: ignore[no-untyped-call]
    assert all(parameter.grad is not None for parameter in own.student.parameters())


def views(own: OnPolicy, count: int = 400) -> list[bool]:
    found = []
    for view in range(count):
        batch = rows()
        found.append(
            "labels" not in own.counts(Batch(batch.inputs, batch.target, batch.where, batch.index, view))
        )
    return found


def test_the_share_of_own_batches_rises_and_is_a_pure_function_of_seed_and_view() -> None:
    own = scheme(share=0.5, rise=0.5)
    own.sample = lambda network, batch, seed: batch
    assert not any(views(own))
    own.progress = 0.25
    early = views(own)
    assert sum(early) / 400 == pytest.approx(0.25, abs=0.08)
    own.progress = 1.0
    late = views(own)
    assert sum(late) / 400 == pytest.approx(0.5, abs=0.09)
    assert views(own) == late
    assert all(now for before, now in zip(early, late, strict=True) if before)
    own.seed = 1
    assert views(own) != late


def test_written_batches_come_again_and_are_in_the_state() -> None:
    own = scheme(share=1.0, replay=3, reuse=0.5)
    calls: list[list[int]] = []
    sample = own.sample

    def counted(network: nn.Module, batch: Batch, seed: list[int]) -> Batch:
        calls.append(seed)
        return sample(network, batch, seed)

    own.sample = counted
    views(own, 40)
    assert 10 < len(calls) < 30
    other = scheme(share=1.0, replay=3, reuse=0.5)
    other.load_state_dict(own.state_dict())
    batch = rows()
    for view in range(40, 60):
        at = Batch(batch.inputs, batch.target, batch.where, batch.index, view)
        assert torch.equal(own(at).loss, other(at).loss)


def test_on_policy_needs_a_student_that_writes(tmp_path: Path) -> None:
    from potstill.config import from_mapping

    raw = {"model": "potstill.models.cifar:resnet8", "weights": "w"}
    recipe = {"data": {"path": "x"}, "scheme": "on_policy", "teacher": raw, "student": raw}
    with pytest.raises(UserError, match=r"teacher\.cache: has no meaning with scheme: on_policy"):
        from_mapping({**recipe, "teacher": {**raw, "cache": 2}})
    assert from_mapping(recipe).distill == {"kl": {"temperature": 1.0}}


def test_a_killed_run_goes_on_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("POTSTILL_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "book.txt").write_text(book(), encoding="utf-8")
    scheme = (
        "scheme: {kind: on_policy, share: 0.7, rise: 0.2, max_new_tokens: 8, prompt_tokens: 6, replay: 2}\n"
    )
    text = RECIPE.replace("student:", f"{scheme}student:").replace("steps: 6", "steps: 10")
    (tmp_path / "recipe.yaml").write_text(text, encoding="utf-8")
    options: dict[str, Any] = {
        "overrides": ["train.checkpoint_every=1"],
        "control": False,
        "echo": lambda _: None,
    }
    torch.manual_seed(0)  # of the teacher that is corrected
    whole = run("recipe.yaml", out=tmp_path / "whole", **options)

    def killed(self: OnPolicy, steps: int) -> None:
        if steps == 7:
            raise InterruptedError("killed")

    usual = OnPolicy.stepped
    monkeypatch.setattr(OnPolicy, "stepped", killed)
    torch.manual_seed(0)
    with pytest.raises(InterruptedError):
        run("recipe.yaml", out=tmp_path / "killed", **options)
    monkeypatch.setattr(OnPolicy, "stepped", usual)
    again = run("recipe.yaml", out=tmp_path / "killed", resume=True, **options)
    assert again.data["models"]["student"]["perplexity"] == whole.data["models"]["student"]["perplexity"]
    for first, second in zip(whole.student.parameters(), again.student.parameters(), strict=True):  # type: ignore[union-attr]
        assert torch.equal(first, second)
