"""The store of answers: whole lines or none; and which answer is learnt."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from torch.nn import Linear

from potstill.data.prompts import Prompt
from potstill.errors import UserError
from potstill.responses import Answer, ResponsesConfig, ResponseStore, asking, choose
from potstill.responses.asking import ask_network
from potstill.responses.choice import verifier_of

FACTS = {"teacher": "me", "seed": "0"}
ONE, TWO = Answer("yes\u2028é", (4, 5), -0.25), Answer("no", (), None, ({"no": -0.1, "yes": -2.5},))


def test_what_is_kept_is_read_again(tmp_path: Path) -> None:
    store = ResponseStore(tmp_path / "new", FACTS)
    assert store.read() == {}
    store.append({"a": [ONE, TWO]})
    store.append({"b": [TWO]})
    assert ResponseStore(tmp_path / "new", FACTS).read() == {"a": [ONE, TWO], "b": [TWO]}


@pytest.mark.parametrize("cut", range(1, 40, 3))
def test_a_torn_line_is_missing_and_hurts_no_other(tmp_path: Path, cut: int) -> None:
    store = ResponseStore(tmp_path, FACTS)
    store.append({"a": [ONE]})
    store.append({"b": [TWO]})
    path = tmp_path / "answers-0.jsonl"
    path.write_bytes(path.read_bytes()[: -cut - 1])
    assert store.read() == {"a": [ONE]}
    store.append({"b": [TWO], "c": [ONE]})
    assert store.read() == {"a": [ONE], "b": [TWO], "c": [ONE]}


def test_a_flipped_bit_is_noticed(tmp_path: Path) -> None:
    store = ResponseStore(tmp_path, FACTS)
    store.append({"a": [ONE], "b": [TWO]})
    path = tmp_path / "answers-0.jsonl"
    content = bytearray(path.read_bytes())
    content[20] ^= 1
    path.write_bytes(content)
    assert store.read() == {"b": [TWO]}


def test_answers_of_another_teacher_are_refused(tmp_path: Path) -> None:
    ResponseStore(tmp_path, FACTS).append({"a": [ONE]})
    with pytest.raises(UserError, match=r"teacher\.responses\.path: .* another seed: 0 there, 1 here"):
        ResponseStore(tmp_path, {**FACTS, "seed": "1"})


def test_the_likeliest_of_those_that_are_kept(tmp_path: Path) -> None:
    some = [
        Answer("a", likelihood=-1.0),
        Answer("b", likelihood=-0.5),
        Answer(" ", likelihood=0.0),
        Answer("c"),
    ]
    assert choose("?", some).answer == some[1]
    found = choose("?", some, lambda prompt, text: prompt == "?" and text != "b")
    assert (found.answer, found.refused) == (some[0], 1)
    assert choose("?", some, lambda prompt, text: False).answer is None
    assert choose("?", [Answer("x"), Answer("y")]).answer == Answer("x")
    with pytest.raises(UserError, match="keep: failed on 'a': ZeroDivisionError"):
        choose("?", some, lambda prompt, text: 1 // 0 == 1)
    with pytest.raises(UserError, match="keep: expected True or False, got 'yes'"):
        choose("?", some, lambda prompt, text: "yes")
    (tmp_path / "mine.py").write_text("def short(prompt, text):\n    return len(text) < 3\nSIZE = 1\n")
    keep = verifier_of("mine.py:short", [tmp_path])
    assert keep is not None
    assert keep("", "ab")
    with pytest.raises(UserError, match="keep: expected a function, got int"):
        verifier_of("mine.py:SIZE", [tmp_path])


def test_memory_that_runs_out_names_the_setting_to_lower(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr(asking, "write", full)
    prompt, store = Prompt("00", (1, 2), "why?"), ResponseStore(tmp_path, FACTS)
    with pytest.raises(UserError, match=r"teacher\.responses\.batch_size: out of memory: lower it; CUDA"):
        ask_network(Linear(1, 1), SimpleNamespace(eos_token_id=0), [prompt], ResponsesConfig(), store, print)
    assert store.read() == {}
