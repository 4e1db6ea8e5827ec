"""Drafts of a student against the definitions, and what transformers makes of them."""

from __future__ import annotations

import pytest
import torch

from potstill.models.characters import character_tokenizer, tiny_llama
from potstill.results.writing import DRAFTED, acceptance, assisted, continuations

TOKENIZER = character_tokenizer("abcdefghijklmnopqr")


def network(seed: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    return tiny_llama(len(TOKENIZER), layers=1, hidden=16, heads=2, initializer_range=0.4).eval()


def test_acceptance_against_the_definition() -> None:
    student, teacher, texts = network(0), network(1), torch.randint(2, 20, (3, 9))
    found = acceptance(student, teacher, texts, 4)
    with torch.no_grad():
        ours, theirs = (
            each(input_ids=texts).logits.double().softmax(-1)[:, 3:8] for each in (student, teacher)
        )
    expected = 1 - (ours - theirs).abs().sum(-1) / 2
    assert found.rate == pytest.approx(float(expected.mean()), rel=1e-5)
    assert found.prefixes == 15
    assert found.interval[0] < found.rate < found.interval[1]
    assert acceptance(teacher, teacher, texts, 4).rate == pytest.approx(1.0, abs=1e-5)


def test_a_perfect_draft_is_always_taken_and_another_less_often() -> None:
    student, teacher, prompts = network(0), network(1), torch.randint(2, 20, (2, 5))
    torch.manual_seed(0)
    before = acceptance(student, teacher, torch.randint(2, 20, (3, 9)), 4)
    same = assisted(before, network(1), teacher, prompts, TOKENIZER)
    other = assisted(before, student, teacher, prompts, TOKENIZER)
    assert same.rate == before.rate
    assert same.tokens_a_pass > 0.8 * (DRAFTED + 1)
    assert other.tokens_a_pass < same.tokens_a_pass
    assert 0 <= other.measured < same.measured <= 1


def test_continuations_are_what_the_network_finds_likeliest() -> None:
    teacher, prompts = network(1), torch.randint(2, 20, (2, 5))
    texts = continuations(teacher, prompts, TOKENIZER)
    for prompt, text in zip(prompts, texts, strict=True):
        ids = prompt[None]
        for _ in range(32):
            with torch.no_grad():
                following = teacher(input_ids=ids).logits[0, -1].argmax()
            if following == TOKENIZER.eos_token_id:
                break
            ids = torch.cat([ids, following.reshape(1, 1)], dim=1)
        assert text == TOKENIZER.decode(ids[0, 5:], skip_special_tokens=True)
