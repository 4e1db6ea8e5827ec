"""A served teacher: against a small server that writes with a real model, and fails in every way."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

from potstill.config import from_mapping
from potstill.data.prompts import Prompt
from potstill.errors import UserError
from potstill.models.characters import character_tokenizer, tiny_llama
from potstill.models.generation import write
from potstill.responses import ResponseStore
from potstill.responses.served import ask_server
from potstill.responses.settings import LanguageTeacherConfig, ResponsesConfig, ServedConfig
from potstill.run import run
from tests.books import book
from tests.test_language_run import RECIPE

TEXTS = [Prompt(f"{place:016x}", (1,), f"prompt {place}") for place in range(6)]
TALK = Prompt("ff" * 8, (1,), "<u>hi<a>", ({"role": "user", "content": "hi"},))
Answering = Callable[[dict[str, Any]], str]


@dataclass
class Fake:
    """What the server does, request by request."""

    address: str = ""
    plan: list[str] = field(default_factory=list)
    answering: Answering = lambda body: f"answer to {body.get('prompt') or body['messages'][-1]['content']}"
    seen: list[tuple[str, dict[str, Any], dict[str, str]]] = field(default_factory=list)
    lock: Any = field(default_factory=threading.Lock)
    at_once: int = 0
    most: int = 0


class Handler(BaseHTTPRequestHandler):
    fake: Fake

    def do_POST(self) -> None:
        fake = self.fake
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with fake.lock:
            fake.seen.append((self.path, body, dict(self.headers)))
            what = fake.plan.pop(0) if fake.plan else "answer"
            fake.at_once += 1
            fake.most = max(fake.most, fake.at_once)
        try:
            self._do(what, body)
        except BrokenPipeError:
            pass
        finally:
            with fake.lock:
                fake.at_once -= 1

    def _do(self, what: str, body: dict[str, Any]) -> None:
        if what == "slow":
            time.sleep(1.0)
        if what in ("429", "500", "401"):
            said = f"no: {self.headers.get('Authorization')}".encode()
            self.send_response(int(what))
            self.send_header("Retry-After", "0")
            self.send_header("Content-Length", str(len(said)))
            self.end_headers()
            self.wfile.write(said)
            return
        if what == "drop":
            self.connection.close()
            return
        content = json.dumps(self._answer(what, body)).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write({"cut": content[:20], "garbled": b"{" * len(content)}.get(what, content))

    def _answer(self, what: str, body: dict[str, Any]) -> dict[str, Any]:
        if what == "empty":
            return {"choices": []}
        if what == "nonsense":
            return {"choices": [{"text": "a", "logprobs": {"token_logprobs": ["none"]}}]}
        text = self.fake.answering(body)
        if "messages" in body:
            place = {"token": text, "logprob": -0.5, "top_logprobs": [{"token": "x", "logprob": -0.7}]}
            logs = {"content": [place]} if body.get("logprobs") else None
            return {"choices": [{"message": {"role": "assistant", "content": text}, "logprobs": logs}]}
        logs = (
            {"token_logprobs": [None, -1.0], "top_logprobs": [None, {"y": -1.5}]}
            if "logprobs" in body
            else None
        )
        return {"choices": [{"text": text, "logprobs": logs}]}

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[Fake]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    made = Fake()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Own", (Handler,), {"fake": made}))
    server.daemon_threads = True
    made.address = f"http://127.0.0.1:{server.server_address[1]}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield made
    server.shutdown()
    thread.join()
    server.server_close()


def asked(fake: Fake, store: Path, prompts: list[Prompt] = TEXTS, **served: Any) -> ResponseStore:
    options = {"pause": 0.01, "timeout": 0.5, "retries": 3, **served}
    samples = options.pop("samples", 1)
    teacher = LanguageTeacherConfig(
        model="big",
        endpoint=fake.address,
        served=ServedConfig(**options),
        responses=ResponsesConfig(batch_size=3, samples=samples, max_new_tokens=5, temperature=0.5),
    )
    kept = ResponseStore(store, {"teacher": "big"})
    ask_server(teacher, prompts, kept, lambda line: None)
    return kept


def test_answers_to_texts_and_conversations_with_their_likelihoods(fake: Fake, tmp_path: Path) -> None:
    found = asked(fake, tmp_path, [TEXTS[0], TALK], top_logprobs=2).read()
    text, talk = found[TEXTS[0].key][0], found[TALK.key][0]
    assert (text.text, text.likelihood, text.top) == ("answer to prompt 0", -1.0, ({"y": -1.5},))
    assert (talk.text, talk.likelihood, talk.top) == ("answer to hi", -0.5, ({"x": -0.7},))
    bodies = {path: body for path, body, _ in fake.seen}
    assert bodies["/v1/completions"]["prompt"] == "prompt 0"
    assert bodies["/v1/chat/completions"]["messages"] == [{"role": "user", "content": "hi"}]
    for body in bodies.values():
        assert (body["model"], body["max_tokens"], body["temperature"]) == ("big", 5, 0.5)
    assert all("Authorization" not in headers for _, _, headers in fake.seen)


def test_what_may_pass_is_asked_again_and_nothing_twice(fake: Fake, tmp_path: Path) -> None:
    fake.plan = ["429", "500", "cut", "garbled", "empty", "drop", "slow", "nonsense"]
    found = asked(fake, tmp_path, retries=7, top_logprobs=1).read()
    assert {key: each[0].text for key, each in found.items()} == {
        prompt.key: f"answer to {prompt.text}" for prompt in TEXTS
    }
    assert len(fake.seen) == 6 + 8
    assert fake.most <= 3 + 1  # the slow one is given up before the server ends it
    asked(fake, tmp_path)
    assert len(fake.seen) == 6 + 8


def test_several_samples_have_different_seeds(fake: Fake, tmp_path: Path) -> None:
    found = asked(fake, tmp_path, TEXTS[:1], samples=3).read()
    assert len(found[TEXTS[0].key]) == 3
    assert len({body["seed"] for _, body, _ in fake.seen}) == 3


def test_what_was_answered_before_the_server_failed_is_kept(fake: Fake, tmp_path: Path) -> None:
    fake.plan = ["answer"] * 4 + ["500"] * 40
    with pytest.raises(UserError, match=r"teacher\.endpoint: .* gave no answer in \d+ tries: HTTP 500"):
        asked(fake, tmp_path)
    kept = ResponseStore(tmp_path, {"teacher": "big"}).read()
    assert 1 <= len(kept) <= 4
    fake.plan, before = [], len(fake.seen)
    assert len(asked(fake, tmp_path).read()) == 6
    assert len(fake.seen) - before == 6 - len(kept)


def test_a_refused_key_is_named_and_never_shown(
    fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match=r"teacher\.served\.key: the environment variable MY_KEY is not set"):
        asked(fake, tmp_path, key="MY_KEY")
    monkeypatch.setenv("MY_KEY", "s3cr3t")
    fake.plan = ["401"]
    with pytest.raises(UserError, match="refuses the request: HTTP 401") as found:
        asked(fake, tmp_path, TEXTS[:1], key="MY_KEY")
    assert "s3cr3t" not in str(found.value)
    monkeypatch.setenv("MY_KEY", " s3cr3t\n")
    asked(fake, tmp_path, key="MY_KEY")
    assert fake.seen[-1][2]["Authorization"] == "Bearer s3cr3t"
    assert all(b"s3cr3t" not in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


def test_no_key_is_shown_wherever_it_was_put_by_mistake(
    fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", "s3cr3t\nX-Other: 1")
    with pytest.raises(UserError, match=r"teacher\.served\.key: MY_KEY holds characters that no key"):
        asked(fake, tmp_path, TEXTS[:1], key="MY_KEY")
    with pytest.raises(UserError, match="expected the name of an environment variable") as found:
        asked(fake, tmp_path, key="sk-s3cr3t")
    assert "s3cr3t" not in str(found.value)
    for address in ("http://me:s3cr3t@host/v1", "http://host/v1?key=s3cr3t"):
        with pytest.raises(UserError, match=r"teacher\.endpoint: expected an address alone") as found:
            LanguageTeacherConfig(model="big", endpoint=address)
        assert "s3cr3t" not in str(found.value)
    assert not fake.seen


def test_a_server_that_is_down_is_named(fake: Fake, tmp_path: Path) -> None:
    fake.address = "http://127.0.0.1:9/v1"
    with pytest.raises(UserError, match=r"127\.0\.0\.1:9/v1 gave no answer in 2 tries: URLError"):
        asked(fake, tmp_path, TEXTS[:1], retries=1)


def test_a_student_learns_what_a_served_model_writes(
    fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("POTSTILL_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "book.txt").write_text(book(), encoding="utf-8")
    torch.manual_seed(0)
    tokenizer = character_tokenizer(book())
    network = tiny_llama(len(tokenizer), layers=1, hidden=16, heads=2)

    def answering(body: dict[str, Any]) -> str:
        with fake.lock:
            ids = tokenizer(body["prompt"])["input_ids"]
            made = write(network, [ids], most=body["max_tokens"], seeds=[[body["seed"]]], end=0)[0]
        return str(tokenizer.decode(made.ids, skip_special_tokens=True)) or "wort"

    fake.answering = answering
    text = "\n".join(line for line in RECIPE.splitlines() if not line.startswith(("correct", "distill")))
    text = text.replace(
        '{model: "potstill.models.characters:tiny_llama", arguments: {layers: 2, hidden: 32, heads: 2}}',
        f"{{model: big, endpoint: '{fake.address}', "
        "responses: {max_new_tokens: 6, prompt_tokens: 5, limit: 12}}",
    )
    text = text.replace(
        "model: teacher, init: {layers: [1]}",
        'model: "potstill.models.characters:tiny_llama", arguments: {hidden: 16, heads: 2}',
    )
    (tmp_path / "recipe.yaml").write_text(text.replace("batch_size: 4", "batch_size: 2"), encoding="utf-8")
    lines: list[str] = []
    result = run("recipe.yaml", out=tmp_path / "run", echo=lines.append)
    assert result.data["models"].keys() == {"control", "student"}
    assert any("12 of 12 prompts have an answer" in line for line in lines)
    assert len(fake.seen) == 12


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"distill": {"kl": {}}}, r"distill\.kl: a served teacher gives answers alone"),
        ({"correct": {"steps": 1, "learning_rate": 1}}, "correct: has no meaning with a served teacher"),
        ({"student": {"model": "teacher"}}, r"student\.model: got teacher, and only the server has its"),
        (
            {"teacher": {"model": "m", "endpoint": "http://h", "arguments": {"a": 1}}},
            r"teacher\.arguments: has no meaning for a served teacher",
        ),
        (
            {"teacher": {"model": "a:b", "served": {"timeout": 3}}, "distill": {"kl": {}}},
            r"teacher\.served: has no meaning without teacher\.endpoint",
        ),
        ({"scheme": "on_policy"}, "scheme: on_policy has no meaning with a served teacher"),
        ({"teacher": {"model": "m", "endpoint": "here"}}, r"teacher\.endpoint: expected http"),
        (
            {"teacher": {"model": "m", "endpoint": "http://h", "weights": "w"}},
            r"teacher\.weights: has no meaning",
        ),
    ],
)
def test_what_a_served_teacher_cannot_do_is_refused(changes: dict[str, Any], message: str) -> None:
    recipe = {
        "task": "language_modeling",
        "data": {"path": "x"},
        "teacher": {"model": "m", "endpoint": "http://host/v1"},
        "student": {"model": "a:b"},
    }
    assert from_mapping(recipe).distill == {"labels": {}}
    with pytest.raises(UserError, match=message):
        from_mapping({**recipe, **changes})
