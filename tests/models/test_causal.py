"""Language models: shared tokenizers, cut vocabularies, fewer layers, saved for those without Potstill."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from potstill.errors import UserError
from potstill.models.causal import (
    check_causal,
    check_same_tokens,
    load_causal,
    load_gguf,
    load_tokenizer,
    narrow_vocabulary,
    packable,
    save_huggingface,
)
from potstill.models.characters import character_tokenizer, tiny_llama
from potstill.models.layer_choice import InitConfig, with_layers

TEXT = "to be, or not to be"


def test_tokenizers_with_the_same_tokens_share_the_shorter_vocabulary() -> None:
    short, long = character_tokenizer(TEXT), character_tokenizer(TEXT)
    long.add_tokens(["<more>", "<and more>"])
    assert len(long) == len(short) + 2
    for teacher, student in ((short, long), (long, short)):
        assert check_same_tokens(teacher, student, [TEXT]) == len(short)


def test_tokenizers_with_other_tokens_are_refused_with_the_first_that_differs() -> None:
    ours, theirs = character_tokenizer("abx"), character_tokenizer("aby")
    with pytest.raises(
        UserError, match=r"1 of 5 tokens differ, the first at 4: 'x', for the teacher 'y'"
    ) as found:
        check_same_tokens(theirs, ours, [])
    assert "cannot be compared" in str(found.value)


def test_tokenizers_that_cut_texts_otherwise_are_refused() -> None:
    import tokenizers

    ours, theirs = character_tokenizer("ab "), character_tokenizer("ab ")
    ours.backend_tokenizer.normalizer = tokenizers.normalizers.Strip()
    with pytest.raises(UserError, match=r"cuts texts otherwise than the teacher: ' ab' is 2 tokens"):
        check_same_tokens(theirs, ours, ["ab", " ab"])


@pytest.mark.parametrize("copied", [False, True])
def test_a_padded_vocabulary_is_cut_and_the_weights_stay(copied: bool) -> None:
    torch.manual_seed(0)
    model = tiny_llama(24, hidden=16, heads=2).eval()
    ids = torch.arange(6)[None]
    with torch.no_grad():
        whole = model(input_ids=ids).logits
        narrow_vocabulary(model, 20)
        model = copy.deepcopy(model) if copied else model
        torch.testing.assert_close(model(input_ids=ids).logits, whole[..., :20])
    assert model.lm_head.weight.shape[0] == 24


def test_fewer_layers_compute_what_those_layers_compute() -> None:
    torch.manual_seed(0)
    deep = tiny_llama(20, layers=5, hidden=16, heads=2).eval()
    shallow = with_layers(deep, InitConfig(every=2), "student.init")
    assert [layer.self_attn.layer_idx for layer in shallow.model.layers] == [0, 1, 2]
    assert shallow.config.num_hidden_layers == 3
    assert len(deep.model.layers) == 5
    assert deep.config.num_hidden_layers == 5
    for place, kept in enumerate((0, 2, 4)):
        ours, theirs = shallow.model.layers[place].state_dict(), deep.model.layers[kept].state_dict()
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    ids = torch.arange(6)[None]
    with torch.no_grad():
        with_cache = shallow.generate(input_ids=ids, max_new_tokens=5, do_sample=False, use_cache=True)
        without = shallow.generate(input_ids=ids, max_new_tokens=5, do_sample=False, use_cache=False)
    assert torch.equal(with_cache, without)


@pytest.mark.parametrize(
    ("layers", "message"), [((0, 5), "below 5"), ((2, 1), "ascending"), ((), "ascending")]
)
def test_layers_that_are_not_there_are_refused(layers: tuple[int, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        with_layers(tiny_llama(20, layers=5, hidden=16, heads=2), InitConfig(layers=layers), "student.init")


def test_what_has_no_layers_is_refused() -> None:
    with pytest.raises(UserError, match="Linear has no list of layers"):
        with_layers(nn.Linear(2, 2), InitConfig(every=2), "student.init")


LOADING = """
import sys
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
assert "potstill" not in sys.modules
ids = tokenizer("to be", return_tensors="pt")["input_ids"]
print(model(input_ids=ids).logits.double().sum().item())
print(tokenizer.decode(model.generate(input_ids=ids, max_new_tokens=4, do_sample=False)[0]))
print(tokenizer.apply_chat_template([{"role": "user", "content": "be"}], tokenize=False))
print(model.config.use_cache, model.generation_config.eos_token_id)
"""


def test_a_saved_student_is_loaded_by_a_process_that_never_imports_potstill(tmp_path: Path) -> None:
    torch.manual_seed(0)
    tokenizer = character_tokenizer(TEXT)
    tokenizer.chat_template = "{% for message in messages %}<{{ message['content'] }}>{% endfor %}"
    model = tiny_llama(len(tokenizer), hidden=16, heads=2).eval()
    packable(model, len(tokenizer))
    assert model.config.use_cache is False
    save_huggingface(model, tokenizer, tmp_path)
    ids = tokenizer("to be", return_tensors="pt")["input_ids"]
    script = [sys.executable, "-W", "ignore", "-c", LOADING, str(tmp_path)]
    lines = subprocess.run(script, capture_output=True, text=True, check=True).stdout.splitlines()
    with torch.no_grad():
        assert float(lines[0]) == pytest.approx(model(input_ids=ids).logits.double().sum().item(), abs=1e-4)
        written = model.generate(input_ids=ids, max_new_tokens=4, do_sample=False)[0]
    assert lines[1:] == [tokenizer.decode(written), "<be>", "True 0"]
    again = load_causal(tmp_path.name, [tmp_path.parent], "student")
    assert check_same_tokens(again.tokenizer, tokenizer, [TEXT]) == len(tokenizer)
    assert len(load_tokenizer(tmp_path.name, [tmp_path.parent])) == len(tokenizer)


def test_models_that_cannot_be_loaded_are_named(tmp_path: Path) -> None:
    (tmp_path / "some.gguf").write_bytes(b"no model")
    with pytest.raises(UserError, match=r"some\.gguf: cannot be read as GGUF"):
        load_gguf(tmp_path / "some.gguf", "teacher")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"teacher\.model: transformers cannot load 'empty'"):
        load_causal("empty", [tmp_path], "teacher")
    with pytest.raises(UserError, match=r"data\.tokenizer: transformers cannot load 'empty'"):
        load_tokenizer("empty", [tmp_path])


def test_folders_that_are_damaged_or_lack_weights_are_named(tmp_path: Path) -> None:
    tokenizer = character_tokenizer(TEXT)
    save_huggingface(tiny_llama(len(tokenizer), hidden=16, heads=2), tokenizer, tmp_path)
    weights = tmp_path / "model.safetensors"
    whole = load_file(weights)
    asked = (tmp_path.name, [tmp_path.parent], "teacher")
    gone = [name for name in whole if "layers.1.mlp" in name]
    save_file({name: whole[name] for name in whole.keys() - gone}, weights, {"format": "pt"})
    with pytest.raises(UserError, match=rf"^teacher\.model: .* lacks 3 weights, the first {min(gone)}"):
        load_causal(*asked)
    weights.write_bytes(weights.read_bytes()[:300])
    with pytest.raises(UserError, match=r"^teacher\.model: transformers cannot load .*header"):
        load_causal(*asked)
    with pytest.raises(UserError, match=r"^teacher\.model: .*num_hidden_layers"):
        load_causal(*asked, {"num_hidden_layers": "many"})


def test_what_sees_the_tokens_that_it_is_to_predict_is_refused() -> None:
    import transformers

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = transformers.BertConfig(vocab_size=24, initializer_range=0.3, **sizes)
    with pytest.raises(UserError, match=r"^teacher\.model: BertLMHeadModel looks at the tokens"):
        check_causal(transformers.BertLMHeadModel(config), 24, "teacher.model")
    config.is_decoder = True
    for network in (transformers.BertLMHeadModel(config), tiny_llama(24, hidden=16, heads=2)):
        check_causal(network, 24, "teacher.model")
        assert network.training


def test_another_configuration_makes_a_new_network_of_the_same_tokens(tmp_path: Path) -> None:
    tokenizer = character_tokenizer(TEXT)
    save_huggingface(tiny_llama(len(tokenizer), hidden=16, heads=2), tokenizer, tmp_path)
    asked = (tmp_path.name, [tmp_path.parent], "student")
    made = load_causal(*asked, {"num_hidden_layers": 1, "intermediate_size": 8})
    assert (len(made.model.layers), made.config.vocab_size) == (1, len(tokenizer))
    assert check_same_tokens(made.tokenizer, tokenizer, [TEXT]) == len(tokenizer)
    same = load_causal(*asked, {"num_hidden_layers": 2})
    kept = load_causal(*asked)
    assert not torch.equal(same.lm_head.weight, kept.lm_head.weight)  # its weights are its own
    with pytest.raises(UserError, match=r"student\.arguments\.hidden_sise: unknown key.*'hidden_size'"):
        load_causal(*asked, {"hidden_sise": 8})
    (tmp_path / "some.gguf").write_bytes(b"no model")
    with pytest.raises(UserError, match=r"student\.arguments: have no meaning with a GGUF file"):
        load_causal("some.gguf", [tmp_path], "student", {"hidden_size": 8})
