"""Language models and encoders: removal is exact, and a clean process loads what is left."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from potstill import measure
from potstill.errors import UserError
from potstill.matching.pairing import auto_pairs
from potstill.matching.recording import number_in, record
from potstill.models.architecture import Architecture, says_all
from potstill.prune import Plan, PruneConfig, Structure, TargetConfig, masked
from potstill.prune.candidates import choose
from potstill.prune.choice import Chooser
from potstill.prune.family_parts import family_structure
from potstill.prune.gauge import Gauge
from potstill.prune.importance import UNIT_KINDS, block_scores, unit_scores
from potstill.prune.pretrained import removed_pretrained
from potstill.prune.store import Scores
from potstill.prune.surgery import untrained

transformers = pytest.importorskip("transformers")

TOKENS = torch.tensor([[3, 7, 1, 9, 12, 5], [2, 2, 8, 30, 4, 11]])
DECODERS = {
    "llama": ("LlamaConfig", "LlamaForCausalLM", {"tie_word_embeddings": True}),
    "mistral": ("MistralConfig", "MistralForCausalLM", {"sliding_window": None}),
    "qwen2": ("Qwen2Config", "Qwen2ForCausalLM", {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM", {"head_dim": 8}),
    "gemma": ("GemmaConfig", "GemmaForCausalLM", {"head_dim": 8}),
}
ENCODERS = {
    "bert": (
        "BertConfig",
        "BertForSequenceClassification",
        {"num_hidden_layers": 3, "intermediate_size": 12},
    ),
    "roberta": (
        "RobertaConfig",
        "RobertaForSequenceClassification",
        {"num_hidden_layers": 3, "intermediate_size": 12, "pad_token_id": 0},
    ),
    "electra": (
        "ElectraConfig",
        "ElectraForSequenceClassification",
        {"num_hidden_layers": 3, "intermediate_size": 12, "embedding_size": 8},
    ),
    "distilbert": (
        "DistilBertConfig",
        "DistilBertForSequenceClassification",
        {"n_layers": 3, "hidden_dim": 12},
    ),
}


def decoder(kind: str, **options: Any) -> Any:
    config, model, own = DECODERS[kind]
    sizes = {
        "vocab_size": 40, "hidden_size": 24, "intermediate_size": 20, "num_hidden_layers": 3,
        "num_attention_heads": 6, "num_key_value_heads": 2, "max_position_embeddings": 32,
        "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    return lively(getattr(transformers, model)(getattr(transformers, config)(**{**sizes, **own, **options})))


def encoder(kind: str) -> Any:
    config, model, own = ENCODERS[kind]
    sizes = (
        {"dim": 16, "n_heads": 2} if kind == "distilbert" else {"hidden_size": 16, "num_attention_heads": 2}
    )
    made = getattr(transformers, config)(vocab_size=40, max_position_embeddings=32, **sizes, **own)
    return lively(getattr(transformers, model)(made))


def lively(model: nn.Module) -> nn.Module:
    """Weights large enough that every part matters; norms and biases that are no ones and zeros."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model.eval()


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        out: Tensor = model(TOKENS).logits
    return out


def spread(structure: Structure, blocks: tuple[str, ...] = ()) -> Plan:
    """Equally many units of every group outside ``blocks``, each group others."""
    units = {}
    for place, group in enumerate(structure.groups):
        if not group.within(blocks):
            count = 1 if group.units < 6 else 5
            units[group.name] = tuple(sorted((place + 2 * step) % group.units for step in range(count)))
    return Plan(blocks, units)


@pytest.mark.parametrize("axes", [("layers", "mlp", "heads"), ("mlp", "kv_groups")], ids=["heads", "groups"])
@pytest.mark.parametrize("kind", DECODERS)
def test_a_smaller_decoder_answers_as_the_masked_one(kind: str, axes: Any) -> None:
    model = decoder(kind)
    structure = family_structure(model, axes)
    plan = spread(structure, (structure.blocks[1],) if structure.blocks else ())
    small = removed_pretrained(model, plan, structure)
    torch.testing.assert_close(logits(small), logits(masked(model, plan, structure)), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(logits(small), logits(model), atol=1e-2)
    assert type(small) is type(model)
    heads = (small.config.num_attention_heads, small.config.num_key_value_heads)
    assert heads == ((4, 2) if "heads" in axes else (3, 1))
    assert small.config.intermediate_size == 15
    assert small.config.num_hidden_layers == len(small.model.layers) == (2 if "layers" in axes else 3)
    tied = small.get_input_embeddings().weight is small.get_output_embeddings().weight
    assert tied == (model.get_input_embeddings().weight is model.get_output_embeddings().weight)
    assert measure.parameters(small) < measure.parameters(model)


@pytest.mark.parametrize("axes", [("layers", "mlp"), ("layers", "mlp", "heads")], ids=["whole", "heads"])
@pytest.mark.parametrize("kind", ENCODERS)
def test_a_smaller_encoder_answers_as_the_masked_one(kind: str, axes: Any) -> None:
    model = encoder(kind)
    structure = family_structure(model, axes)
    plan = spread(structure, (structure.blocks[0],))
    small = removed_pretrained(model, plan, structure)
    torch.testing.assert_close(logits(small), logits(masked(model, plan, structure)), atol=1e-4, rtol=1e-4)
    assert len(family_structure(small).blocks) == 2
    assert {group.units for group in family_structure(small).groups} == {7}
    assert says_all(small) == ("heads" not in axes)  # else only Potstill can load it


@pytest.mark.parametrize("signal", ["tokens", "attention"])
def test_layers_that_are_left_learn_from_what_they_were(signal: str) -> None:
    model = decoder("llama", attn_implementation="eager", num_hidden_layers=5)
    structure = family_structure(model, ["layers"])
    path = structure.blocks[0].rpartition(".")[0]
    small = removed_pretrained(model, Plan((f"{path}.1",)), structure)
    again = removed_pretrained(small, Plan((f"{path}.2",)), family_structure(small, ["layers"]))
    assert again.config.kept_layers == {"layers": [0, 2, 4], "of": 5}  # type: ignore[union-attr]
    pairs = auto_pairs(record(again, TOKENS), record(model, TOKENS), signal=signal)
    numbers = [
        (number_in(pair.student), number_in(pair.teacher)) for pair in pairs if "before" in pair.reason
    ]
    assert numbers == [(0, 0), (1, 2), (2, 4)]
    other = decoder("llama", num_hidden_layers=4)  # not what it was: by depth
    by_depth = auto_pairs(record(again, TOKENS), record(other, TOKENS), signal="tokens")
    assert [number_in(pair.teacher) for pair in by_depth][-3:] == [1, 2, 3]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", ["llama", "gemma"])
def test_hidden_width_that_holds_zeros_goes_unnoticed(kind: str, tied: bool) -> None:
    model = decoder(kind, tie_word_embeddings=tied)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.add_(0.3 * torch.randn(parameter.shape))
    structure = family_structure(model, ["hidden"])
    (group,) = structure.groups
    units = tuple(range(0, 24, 4))
    with torch.no_grad():
        for piece in group.writers:
            weight = getattr(model.get_submodule(piece.module), piece.tensor)
            if weight.dim() == 2:
                weight.index_fill_(piece.dim, torch.tensor(units), 0.0)
    small = removed_pretrained(model, Plan(units={"hidden": units}), structure)
    assert small.config.hidden_size == 18
    assert (small.get_input_embeddings().weight is small.get_output_embeddings().weight) == tied
    torch.testing.assert_close(logits(small), logits(model), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("axes", [("hidden",), ("layers", "heads", "hidden")], ids=["alone", "together"])
@pytest.mark.parametrize("kind", ENCODERS)
def test_hidden_width_of_an_encoder_that_holds_zeros_goes_unnoticed(kind: str, axes: Any) -> None:
    """Layer norms see no difference where what goes is zero and the mean of the rest is."""
    model = encoder(kind)
    structure = family_structure(model, axes)
    group = structure.group("hidden")
    units = torch.arange(0, 16, 4)
    left = torch.tensor([unit for unit in range(16) if unit % 4])
    with torch.no_grad():
        for piece in group.writers:
            weight = getattr(model.get_submodule(piece.module), piece.tensor)
            if piece.tensor == "weight" and weight.dim() == 1:
                weight.fill_(0.7)
            else:
                weight.index_fill_(piece.dim, units, 0.0)
                rest = weight.index_select(piece.dim, left)
                weight.index_copy_(piece.dim, left, rest - rest.mean(dim=piece.dim, keepdim=True))
    others = dict(spread(structure, structure.blocks[1:2]).units)
    plan = Plan(structure.blocks[1:2], {**others, "hidden": tuple(units.tolist())})
    small = removed_pretrained(model, plan, structure)
    without = removed_pretrained(model, Plan(plan.blocks, {**others, "hidden": ()}), structure)
    torch.testing.assert_close(logits(small), logits(without), atol=1e-4, rtol=1e-4)
    assert not says_all(small)
    again = Architecture.between(model, small).applied(model)
    again.load_state_dict(small.state_dict())
    torch.testing.assert_close(logits(again), logits(small), atol=0, rtol=0)
    (narrow,) = family_structure(small, ["hidden"]).groups
    assert narrow.units == 12
    assert any("hidden width" in note for note in structure.notes)
    scratch = untrained(small, 1)
    assert {name: each.shape for name, each in scratch.state_dict().items()} == {
        name: each.shape for name, each in small.state_dict().items()
    }


def test_words_that_are_also_an_output_hold_the_hidden_width_of_an_encoder() -> None:
    config = transformers.BertConfig(
        vocab_size=40, hidden_size=16, num_attention_heads=2, num_hidden_layers=1, intermediate_size=12
    )
    model = transformers.BertForMaskedLM(config)
    with pytest.raises(UserError, match=r"is shared with .*decoder.*, which would stay whole"):
        removed_pretrained(model, Plan(units={"hidden": (0,)}), family_structure(model, ["hidden"]))


LOAD = """
import sys, torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
for folder in sys.argv[1:]:
    encodes = any(name in folder.rpartition("/")[2] for name in ("bert", "electra"))
    kind = AutoModelForSequenceClassification if encodes else AutoModelForCausalLM
    model = kind.from_pretrained(folder).eval()
    wanted = torch.load(folder + "/logits.pt", weights_only=True)
    tokens = torch.load(folder + "/tokens.pt", weights_only=True)
    with torch.no_grad():
        assert (model(tokens).logits - wanted).abs().max() == 0, folder
assert not any(name.startswith("potstill") for name in sys.modules)
print("same")
"""


def test_a_clean_process_loads_every_family_and_answers_the_same(tmp_path: Path) -> None:
    folders = []
    usual = [
        (kind, ["layers", "mlp", *(["heads"] if kind in DECODERS else [])]) for kind in (*DECODERS, *ENCODERS)
    ]
    for kind, axes in (*usual, ("qwen2", ["layers", "kv_groups"])):
        model = decoder(kind) if kind in DECODERS else encoder(kind)
        structure = family_structure(model, axes)
        small = removed_pretrained(model, spread(structure, (structure.blocks[1],)), structure)
        folder = tmp_path / "-".join(axes) / kind
        small.save_pretrained(folder)  # type: ignore[operator]
        torch.save(logits(small), folder / "logits.pt")
        torch.save(TOKENS, folder / "tokens.pt")
        folders.append(str(folder))
    done = subprocess.run([sys.executable, "-c", LOAD, *folders], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "same"


def losses(model: nn.Module) -> Iterator[Tensor]:
    for row in TOKENS:
        out = model(row[None]).logits
        yield nn.functional.cross_entropy(out[0, :-1], row[1:], reduction="none").mean()[None]


@pytest.mark.parametrize("kind", UNIT_KINDS)
def test_scores_of_a_decoder_are_those_of_its_parts(kind: Any) -> None:
    model = decoder("llama")
    structure = family_structure(model, ["mlp", "heads"])
    with torch.no_grad():  # a neuron and a head that do nothing
        layer = model.model.layers[1]
        layer.mlp.down_proj.weight[:, 4] = 0
        layer.self_attn.o_proj.weight[:, 4 * 4 : 5 * 4] = 0
        if kind in ("activation", "magnitude"):
            layer.mlp.up_proj.weight[4] = layer.mlp.gate_proj.weight[4] = 0
            layer.self_attn.q_proj.weight[4 * 4 : 5 * 4] = 0
    scores = unit_scores(model, structure.groups, losses, kind)
    assert {group.name: len(scores[group.name]) for group in structure.groups} == {
        group.name: group.units for group in structure.groups
    }
    neurons = scores["model.layers.1.mlp.gate_proj"]
    assert int(neurons.argmin()) == 4
    if kind != "activation":  # what a head says is there even if nothing listens
        assert int(scores["model.layers.1.self_attn.group1"].argmin()) == 1


def test_hidden_width_is_scored_over_all_norms() -> None:
    model = decoder("llama")
    (group,) = family_structure(model, ["hidden"]).groups
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter[5] = 0.0  # nothing reads it, whatever is written there
    for kind in ("taylor", "activation", "activation_weight"):
        scores = unit_scores(model, [group], losses, kind)["hidden"]
        assert int(scores.argmin()) == 5
        assert float(scores[5]) == 0
    read: list[Tensor] = []
    norms = [one for name, one in model.named_modules() if name.endswith("norm")]
    hooks = [norm.register_forward_hook(lambda *given: read.append(given[2].detach())) for norm in norms]
    raw = torch.zeros(24, dtype=torch.float64)
    for _ in losses(model):
        raw += sum(one[0].double().abs().mean(dim=0) ** 2 for one in read)
        read.clear()
    for hook in hooks:
        hook.remove()
    wanted = (raw / 2).sqrt()
    found = unit_scores(model, [group], losses, "activation")["hidden"]
    torch.testing.assert_close(found, wanted / wanted.mean(), rtol=1e-4, atol=1e-6)


def test_activation_of_a_head_is_the_norm_of_what_it_says() -> None:
    model = decoder("llama")
    structure = family_structure(model, ["heads"])
    group = structure.group("model.layers.0.self_attn.group0")
    said: list[Tensor] = []
    hook = model.model.layers[0].self_attn.o_proj.register_forward_pre_hook(
        lambda _, inputs: said.append(inputs[0].detach())
    )
    raw = unit_scores(model, [group], losses, "activation")[group.name]
    for _ in losses(model):
        pass
    hook.remove()
    norms = torch.stack([one[0].reshape(6, 6, 4).norm(dim=2).mean(dim=0) for one in said])  # (N, heads)
    wanted = norms[:, :3].double().pow(2).mean(dim=0).sqrt()
    torch.testing.assert_close(raw, wanted / wanted.mean(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["loss", "influence"])
def test_layers_of_a_decoder_are_scored(kind: Any) -> None:
    model = decoder("qwen3")
    with torch.no_grad():
        model.model.layers[2].mlp.down_proj.weight.zero_()
        model.model.layers[2].self_attn.o_proj.weight.zero_()  # a layer that adds nothing
    structure = family_structure(model, ["layers"])
    scores = block_scores(model, structure, losses, kind)
    if kind == "influence":
        assert scores["model.layers.2"] == pytest.approx(0, abs=1e-5)
        assert min(scores, key=scores.__getitem__) == "model.layers.2"
    else:
        whole = torch.cat(list(losses(model))).mean().detach()
        assert scores["model.layers.2"] == pytest.approx(float(whole), abs=1e-5)


def test_what_cannot_be_said_in_a_configuration_is_refused() -> None:
    model = decoder("llama")
    structure = family_structure(model, ["layers", "mlp", "heads"])
    with pytest.raises(UserError, match=r"equally many of mlp from every layer.*got 0 to 1"):
        removed_pretrained(model, Plan(units={"model.layers.0.mlp.gate_proj": (0,)}), structure)
    with pytest.raises(UserError, match="all layers would be removed"):
        removed_pretrained(model, Plan(structure.blocks), structure)
    narrow = family_structure(model, ["hidden"])
    with pytest.raises(UserError, match=r"LlamaConfig refuses these sizes.*not a multiple"):
        removed_pretrained(model, Plan(units={"hidden": (0,)}), narrow)


@pytest.mark.parametrize(
    ("make", "axes", "message"),
    [
        (lambda: decoder("llama"), ["heads", "kv_groups"], "expected heads or kv_groups, got both"),
        (lambda: decoder("llama"), ["channels"], "channels has no meaning for LlamaForCausalLM"),
        (lambda: nn.Linear(2, 2), ["layers"], "no family of transformers that is known here: None"),
    ],
)
def test_axes_that_a_family_does_not_have_are_refused(make: Any, axes: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        family_structure(make(), axes)


def test_mixtures_of_neurons_and_heads_are_candidates() -> None:
    model = encoder("bert")
    structure = family_structure(model, ["mlp", "heads"])

    def losses(one: nn.Module) -> Iterator[Tensor]:
        yield one(TOKENS).logits.pow(2).mean(dim=1)

    scores = Scores(unit_scores(model, structure.groups, losses, "activation"), {})
    target = TargetConfig(macs=0.8)
    gauge = Gauge.of(target, model, TOKENS, lambda _: ())
    chooser = Chooser(model, structure, scores, gauge, PruneConfig(target=target, trial_steps=0))
    found = choose(chooser, gauge.goal, losses, None)
    assert len({tuple(sorted(one.gone.items())) for one in found}) > 1
    assert all(one.cost <= gauge.goal for one in found)
    assert [one.loss for one in found] == sorted(one.loss for one in found)
    assert all(sum(one.gone.values()) == sum(map(len, one.plan.units.values())) for one in found)


def test_tokens_a_second_are_the_measured_time_of_a_forward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    def clock(models: Any, **_: Any) -> Any:  # a microsecond a parameter
        found = {name: 1e-3 * measure.parameters(model) for name, (model, _) in models.items()}
        return {name: measure.Latency(value, value, value, 3) for name, value in found.items()}

    monkeypatch.setattr(measure, "latency", clock)
    model, inputs = decoder("llama"), {"input_ids": TOKENS}
    own = 1000 * TOKENS.numel() / (1e-3 * measure.parameters(model))
    structure = family_structure(model, ["layers", "mlp"])
    target = TargetConfig(tokens_per_second=1.2 * own)
    gauge = Gauge.of(target, model, inputs, lambda _: structure.blocks)
    assert gauge.goal == pytest.approx(gauge.whole / 1.2)
    scores = Scores(
        unit_scores(model, structure.groups, losses, "magnitude"),
        block_scores(model, structure, losses, "influence"),
    )
    config = PruneConfig(target=target, trial_steps=0)
    gauge = Gauge.of(target, model, inputs, lambda one: family_structure(one, ["layers"]).blocks)
    best = choose(Chooser(model, structure, scores, gauge, config), gauge.goal, losses, None)[0]
    small = removed_pretrained(model, best.plan, structure)
    assert 1000 * TOKENS.numel() / (1e-3 * measure.parameters(small)) >= 1.2 * own
    with pytest.raises(UserError, match=r"prune\.target\.tokens_per_second: must be above the model's own"):
        Gauge.of(TargetConfig(tokens_per_second=own / 2), model, inputs, lambda _: ())
    with pytest.raises(UserError, match=r"tokens_per_second: has a meaning for texts alone"):
        Gauge.of(target, nn.Linear(4, 4), torch.zeros(1, 4), lambda _: ())
