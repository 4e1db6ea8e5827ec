"""Low-rank students: what learns, merging, and files that peft and transformers read."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from potstill.errors import UserError
from potstill.models.causal import save_huggingface
from potstill.models.characters import character_tokenizer, tiny_llama
from potstill.models.lora import LoraConfig, merged, save_adapters, with_lora
from potstill.run import load_student, run
from tests.books import book
from tests.test_language_run import RECIPE

IDS = torch.arange(3, 11)[None]


def logits(network: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = network(input_ids=IDS).logits
    return found


def trained(base: nn.Module) -> nn.Module:
    """A network whose updates are no longer zero."""
    network = with_lora(copy.deepcopy(base), LoraConfig(rank=2))
    for name, parameter in network.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    return network


def test_updates_alone_learn_and_merge_to_the_same_answers(tmp_path: Path) -> None:
    torch.manual_seed(0)
    base = tiny_llama(20, layers=2, hidden=16, heads=2)
    assert torch.equal(
        logits(with_lora(copy.deepcopy(base), LoraConfig())), logits(base)
    )  # nothing learnt yet
    network = trained(base)
    learning = {name for name, each in network.named_parameters() if each.requires_grad}
    assert learning
    assert all("lora_" in name for name in learning)
    whole = merged(network)
    assert type(whole) is type(base)
    assert whole.state_dict().keys() == base.state_dict().keys()
    torch.testing.assert_close(logits(whole), logits(network), rtol=1e-5, atol=1e-6)
    assert (logits(whole) - logits(base)).abs().max() > 1e-3
    assert merged(base) is base
    save_adapters(base, tmp_path / "none")
    assert not (tmp_path / "none").exists()


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft's
def test_peft_reads_the_updates_beside_their_network(tmp_path: Path) -> None:
    import peft

    torch.manual_seed(0)
    base = tiny_llama(20, layers=2, hidden=16, heads=2)
    network = trained(base)
    save_adapters(network, tmp_path)
    read = peft.PeftModel.from_pretrained(copy.deepcopy(base), tmp_path)
    torch.testing.assert_close(logits(read), logits(network), rtol=1e-5, atol=1e-6)


def test_what_cannot_have_updates_is_refused() -> None:
    with pytest.raises(UserError, match=r"student\.lora: needs a language model of transformers, got Linear"):
        with_lora(nn.Linear(1, 1), LoraConfig())
    with pytest.raises(UserError, match=r"student\.lora\.layers: .*nothing"):
        with_lora(tiny_llama(20, layers=1, hidden=8, heads=2), LoraConfig(layers=("nothing",)))


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft's
def test_a_run_trains_updates_and_keeps_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers

    monkeypatch.delenv("POTSTILL_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "book.txt").write_text(book(), encoding="utf-8")
    tokenizer = character_tokenizer(book())
    save_huggingface(tiny_llama(len(tokenizer), layers=1, hidden=16, heads=2), tokenizer, tmp_path / "small")
    text = "\n".join(line for line in RECIPE.splitlines() if not line.startswith("student"))
    text = text.replace("steps: 40", "steps: 4") + "\nstudent: {model: 'transformers:small', lora: 4}\n"
    (tmp_path / "recipe.yaml").write_text(text, encoding="utf-8")
    torch.manual_seed(0)
    folder = run("recipe.yaml", out=tmp_path / "run", control=False, echo=lambda line: None).folder
    student = load_student(folder, tmp_path).student
    read = transformers.AutoModelForCausalLM.from_pretrained(folder / "student")
    torch.testing.assert_close(logits(read), logits(student), rtol=1e-4, atol=1e-5)
    before = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "small")
    assert (logits(read) - logits(before)).abs().max() > 1e-4
    import peft

    beside = peft.PeftModel.from_pretrained(before, folder / "adapter")
    torch.testing.assert_close(logits(beside), logits(student), rtol=1e-4, atol=1e-5)
