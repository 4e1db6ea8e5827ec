"""Labels and divergences from hidden states against the same from logits, on models of several families."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from potstill.batch import Batch
from potstill.data.encoding import Encoded
from potstill.data.packing import pack
from potstill.data.tokens import TokenSet
from potstill.errors import UserError
from potstill.losses.heads import Projected
from potstill.matching.objective import Objective
from potstill.models.causal import narrow_vocabulary, packable
from potstill.models.characters import character_tokenizer
from potstill.models.projection import COUNTED, answer_projected
from potstill.schemes import Offline
from potstill.tasks import LanguageModeling
from potstill.train.balance import Gradients

WORDS = 30
SMALL: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
    "initializer_range": 0.3,
}


def network(kind: str, words: int = WORDS, seed: int = 0, **options: Any) -> nn.Module:
    torch.manual_seed(seed)
    config = getattr(transformers, f"{kind}Config")(**{**SMALL, **options}, vocab_size=words)
    model: nn.Module = getattr(transformers, f"{kind}ForCausalLM")(config)
    return model


FAMILIES = {
    "tied": lambda seed: network("Llama", seed=seed, tie_word_embeddings=True),
    "untied": lambda seed: network("Llama", seed=seed, tie_word_embeddings=False),
    "soft cap": lambda seed: network("Gemma2", seed=seed, head_dim=8, final_logit_softcapping=2.0),
    "bias": lambda seed: network("Phi", seed=seed),
}


def rows() -> TokenSet:
    ids = torch.randint(1, 20, (40,), generator=torch.Generator().manual_seed(0)).tolist()
    texts = [Encoded(ids[:9], [True] * 9), Encoded(ids[9:20], [place > 4 for place in range(11)])]
    return TokenSet(pack([*texts, Encoded(ids[20:], [True] * 20)], 12, padding=0))


def task(words: int = WORDS, *, projected: bool) -> LanguageModeling:
    return LanguageModeling(tokenizer=character_tokenizer("abc"), vocabulary=words, projected=projected)


def both_ways(
    student: nn.Module, teacher: nn.Module, terms: dict[str, Any], words: int = WORDS
) -> list[tuple[dict[str, Any], dict[str, torch.Tensor]]]:
    """Parts and gradients, from logits and from hidden states."""
    found = []
    for projected in (False, True):
        ours, theirs = copy.deepcopy(student), copy.deepcopy(teacher)
        for each in (ours, theirs):
            if each.config.vocab_size > words:
                narrow_vocabulary(each, words)
            packable(each, words)
            assert answer_projected(each, words)
        made = task(words, projected=projected)
        part = rows()
        batch = made.training_batch(*part.__getitems__(range(len(part))), 0)
        assert (COUNTED in batch.input("student")) == projected
        scheme = Offline(ours, theirs, Objective(terms, made.supervised))
        step = scheme(batch)
        assert (step.output.head is not None) == projected
        step.loss.backward()
        values = {name: (share.total.item(), share.count) for name, share in step.parts.items()}
        found.append((values, {name: p.grad for name, p in ours.named_parameters() if p.grad is not None}))
    return found


def compare(found: list[tuple[dict[str, Any], dict[str, torch.Tensor]]]) -> None:
    (dense, wanted), (fused, made) = found
    assert list(dense) == list(fused)
    for name, (total, count) in dense.items():
        assert fused[name] == (pytest.approx(total, rel=1e-5), count)
    assert wanted.keys() == made.keys()
    for name, gradient in wanted.items():
        torch.testing.assert_close(made[name], gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_hidden_states_give_the_parts_and_gradients_of_logits(family: str) -> None:
    terms = {"labels": {"weight": 0.3}, "kl": {"weight": 0.7, "temperature": 1}}
    compare(both_ways(FAMILIES[family](0), FAMILIES[family](1), terms))


@pytest.mark.parametrize(
    "terms",
    [
        {"labels": {"weight": 1}, "kl": {"from": 0.5}},
        {"labels": {"weight": 0}, "reverse_kl": {"weight": 2}},
        {"labels": {"weight": 0.5}, "kl": {"temperature": 2}, "generalized_js": {"weight": 0.2}},
        {"labels": {"weight": 0}, "feature_mse": {"layers": ["model.layers.0"]}},
        {"labels": {"weight": 0.5}, "total_variation": {}, "feature_mse": {"layers": ["model.layers.0"]}},
    ],
    ids=lambda terms: " ".join(terms),
)
def test_any_mix_of_parts(terms: dict[str, Any]) -> None:
    student, teacher = FAMILIES["untied"](0), FAMILIES["untied"](1)
    if "feature_mse" not in terms:
        return compare(both_ways(student, teacher, terms))
    found = []
    for projected in (False, True):
        ours, theirs = copy.deepcopy(student), copy.deepcopy(teacher)
        assert answer_projected(ours, WORDS)
        assert answer_projected(theirs, WORDS)
        made, part = task(projected=projected), rows()
        example = made.plain_batch(*part.__getitems__([0, 1]))
        scheme = Offline(ours, theirs, Objective(terms, made.supervised), example=example)
        step = scheme(made.training_batch(*part.__getitems__(range(len(part))), 0))
        step.loss.backward()
        values = {name: (share.total.item(), share.count) for name, share in step.parts.items()}
        found.append((values, {name: p.grad for name, p in ours.named_parameters() if p.grad is not None}))
    return compare(found)


@pytest.mark.parametrize("sizes", [(30, 34), (34, 30), (34, 36)])
def test_padded_vocabularies_are_cut_to_the_shared_words(sizes: tuple[int, int]) -> None:
    student, teacher = (network("Llama", words, seed) for seed, words in enumerate(sizes))
    terms = {"labels": {"weight": 0.3}, "kl": {"weight": 0.7, "temperature": 1}}
    compare(both_ways(student, teacher, terms, words=30))


def test_a_frozen_head_stays_as_it_is() -> None:
    student = network("Llama", tie_word_embeddings=False)
    student.lm_head.requires_grad_(False)
    found = both_ways(student, network("Llama", seed=1), {"labels": {"weight": 1}, "kl": {}})
    assert "lm_head.weight" not in found[1][1]
    compare(found)


def test_each_part_has_its_own_gradient_where_they_are_measured() -> None:
    norms = []
    for projected in (False, True):
        ours, theirs = FAMILIES["tied"](0), FAMILIES["tied"](1)
        assert answer_projected(ours, WORDS)
        assert answer_projected(theirs, WORDS)
        made, part = task(projected=projected), rows()
        batch: Batch = made.training_batch(*part.__getitems__(range(len(part))), 0)
        objective = Objective({"labels": {"weight": 0.3}, "kl": {}}, made.supervised)
        gradients = Gradients([ours])
        gradients.add(Offline(ours, theirs, objective)(batch).parts, objective.counts(batch))
        norms.append(gradients.norms())
    assert norms[1] == pytest.approx(norms[0], rel=1e-4)


def test_what_changes_logits_otherwise_keeps_giving_them() -> None:
    scaled = network("Cohere", logit_scale=0.5)
    assert not answer_projected(scaled, WORDS)
    ids = torch.arange(4)[None]
    assert scaled(input_ids=ids).logits.shape == (1, 4, WORDS)
    assert not answer_projected(nn.Linear(2, 2), WORDS)


def test_a_copy_answers_for_itself() -> None:
    model = FAMILIES["tied"](0)
    assert answer_projected(model, WORDS)
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.lm_head.weight += 1.0
    ids = torch.arange(4)[None]
    answer = other(input_ids=ids, **{COUNTED: torch.ones_like(ids)})
    assert isinstance(answer, Projected)
    assert answer.head.weight is other.lm_head.weight
    assert model(input_ids=ids).logits.shape == (1, 4, WORDS)


def test_a_loss_that_needs_logits_says_so() -> None:
    model = FAMILIES["tied"](0)
    assert answer_projected(model, WORDS)
    made, part = task(projected=True), rows()
    scheme = Offline(model, copy.deepcopy(model), Objective({"logit_mse": {}}, made.supervised))
    with pytest.raises(UserError, match=r"distill\.logit_mse: logit_mse needs logits"):
        scheme(made.training_batch(*part.__getitems__([0]), 0))


def test_half_precision_keeps_the_type_of_the_head() -> None:
    model = FAMILIES["untied"](0)
    assert answer_projected(model, WORDS)
    ids = torch.arange(4)[None]
    with torch.autocast("cpu", torch.bfloat16):
        answer = model(input_ids=ids, **{COUNTED: torch.ones_like(ids)})
    assert answer.hidden.dtype == torch.bfloat16
