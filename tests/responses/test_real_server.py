"""A served teacher against a real server: ``transformers serve`` with a small model, as documented."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from potstill.data.prompts import Prompt
from potstill.models.characters import character_tokenizer, tiny_llama
from potstill.models.generation import write
from potstill.responses import ResponseStore
from potstill.responses.served import ask_server
from potstill.responses.settings import LanguageTeacherConfig, ResponsesConfig, ServedConfig
from tests.books import book

DOCUMENTED = "transformers serve path/to/model --port 8123"
CHAT = "{% for message in messages %}{{ message['content'] }}\n{% endfor %}"
SECONDS = 120


@dataclass(frozen=True)
class Server:
    """A running server and the model that it serves."""

    endpoint: str
    model: str


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The documented command, with a model of characters that learnt nothing."""
    pytest.importorskip("fastapi", reason="pip install 'transformers[serving]'")
    pytest.importorskip("uvicorn", reason="pip install 'transformers[serving]'")
    folder = tmp_path_factory.mktemp("served")
    torch.manual_seed(0)
    tokenizer = character_tokenizer(book())
    tokenizer.chat_template = CHAT
    tiny_llama(len(tokenizer), layers=1, hidden=16, heads=2).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = DOCUMENTED.replace("path/to/model", str(folder / "model")).replace("8123", str(port)).split()
    beside = Path(sys.executable).with_name(words[0])
    words[0] = str(beside) if beside.is_file() else str(shutil.which(words[0]))
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            words, stdout=log, stderr=subprocess.STDOUT, env={**os.environ, "HF_HUB_OFFLINE": "1"}
        )
    try:
        end = time.monotonic() + SECONDS
        while not _answers(f"http://127.0.0.1:{port}/health"):
            assert process.poll() is None, (folder / "log").read_text()[-2000:]
            assert time.monotonic() < end, (folder / "log").read_text()[-2000:]
            time.sleep(0.2)
        yield Server(f"http://127.0.0.1:{port}/v1", str(folder / "model"))
    finally:
        process.terminate()
        process.wait(30)


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def test_the_command_is_the_documented_one() -> None:
    usage = Path(__file__).parents[2] / "docs" / "usage.md"
    assert DOCUMENTED in re.sub(r"\s+", " ", usage.read_text(encoding="utf-8"))


def test_a_real_server_answers_texts_and_conversations(server: Server, tmp_path: Path) -> None:
    config = LanguageTeacherConfig(
        model=server.model,
        endpoint=server.endpoint,
        responses=ResponsesConfig(max_new_tokens=5, temperature=0.0, batch_size=2),
        served=ServedConfig(timeout=60, retries=1),
    )
    said = [{"role": "user", "content": "der wald"}]
    prompts = [Prompt(f"{place:016x}", (1,), text) for place, text in enumerate(("der ", "die ", "das "))]
    prompts.append(Prompt("ff" * 8, (1,), "der wald", tuple(said)))
    store = ResponseStore(tmp_path, {"teacher": server.model})
    ask_server(config, prompts, store, lambda line: None)
    found = {key: answers[0].text for key, answers in store.read().items()}
    tokenizer = AutoTokenizer.from_pretrained(server.model)
    network = AutoModelForCausalLM.from_pretrained(server.model)
    for prompt in prompts:
        text = prompt.text if not prompt.messages else "".join(f"{each['content']}\n" for each in said)
        ids = tokenizer(text)["input_ids"]
        made = write(network, [ids], most=5, seeds=[[0]], temperature=0.0, end=tokenizer.eos_token_id)[0].ids
        assert found[prompt.key] == tokenizer.decode(made, skip_special_tokens=True), prompt
