"""Prompts are put to a teacher on an OpenAI-compatible server.

A key comes from an environment variable and is sent to the server; it is written nowhere, and cut out of
whatever the server says.
"""

from __future__ import annotations

import http.client
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Any

from potstill import distributed
from potstill.data.prompts import Prompt
from potstill.errors import UserError
from potstill.responses.settings import LanguageTeacherConfig, ResponsesConfig
from potstill.responses.store import Answer, ResponseStore

__all__ = ["ask_server"]

Say = Callable[[str], None]
AGAIN = {408, 425, 429, 500, 502, 503, 504, 529}
"""HTTP statuses that may pass."""
LONGEST_PAUSE = 60.0
SHOWN = 200


class _PassingError(Exception):
    """A failure that may pass.

    Attributes:
        wait: Seconds that the server asks to wait, if it does.
    """

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.wait = wait


def ask_server(
    teacher: LanguageTeacherConfig, prompts: Sequence[Prompt], store: ResponseStore, say: Say
) -> None:
    """Let a served teacher answer what it has not answered yet; several processes share the work.

    A conversation goes to ``/chat/completions``, a text to ``/completions``. ``batch_size`` requests are on
    their way at once; each prompt is kept as soon as all its answers are there.

    Args:
        teacher: Where it is served, and how it is asked.
        prompts: What is asked; each key once.
        store: Keeps the answers.
        say: Told how far it is.

    Raises:
        UserError: If the key is missing, the server refuses a request, or goes on failing; what was answered
            until then is kept.
    """
    assert teacher.responses is not None, "a served teacher answers"
    asking = _Asking(teacher, teacher.responses, _key(teacher.served.key))
    known = store.read()
    mine = sorted(prompts, key=lambda prompt: prompt.key)[distributed.rank() :: distributed.world_size()]
    left = [prompt for prompt in mine if prompt.key not in known]
    with ThreadPoolExecutor(teacher.responses.batch_size) as pool:
        waiting: dict[Future[list[Answer]], Prompt] = {
            pool.submit(asking.answers, each): each for each in left
        }
        try:
            for number, done in enumerate(as_completed(waiting), start=1):
                store.append({waiting[done].key: done.result()})
                if number % max(1, len(left) // 10) == 0:
                    say(f"responses: {number} of {len(left)} prompts are answered")
        except BaseException:
            asking.stopped = True
            pool.shutdown(wait=True, cancel_futures=True)
            kept = {
                prompt.key: each.result()
                for each, prompt in waiting.items()
                if each.done() and not each.cancelled() and each.exception() is None
            }
            store.append({key: some for key, some in kept.items() if key not in store.read()})
            raise
    distributed.barrier()


def _key(name: str | None) -> str | None:
    if name is None:
        return None
    key = os.environ.get(name, "").strip()
    if not key:
        raise UserError("teacher.served.key", f"the environment variable {name} is not set")
    if not (key.isascii() and key.isprintable()):
        raise UserError("teacher.served.key", f"{name} holds characters that no key has")
    return key


@dataclass
class _Asking:
    """How one teacher is asked."""

    teacher: LanguageTeacherConfig
    config: ResponsesConfig
    key: str | None
    stopped: bool = False

    def answers(self, prompt: Prompt) -> list[Answer]:
        """All answers to a prompt."""
        return [self._persistent(prompt, number) for number in range(self.config.samples)]

    def _persistent(self, prompt: Prompt, number: int) -> Answer:
        """One answer, asked for again after failures that may pass."""
        served, pause = self.teacher.served, self.teacher.served.pause
        for attempt in range(served.retries + 1):
            try:
                return _answer(self._request(prompt, number))
            except _PassingError as failure:
                if attempt == served.retries or self.stopped:
                    raise UserError(
                        "teacher.endpoint",
                        f"{self.teacher.endpoint} gave no answer in {attempt + 1} tries: "
                        f"{self._clean(failure)}; answers so far are kept, run again to go on",
                    ) from failure
                time.sleep(min(max(pause * 2**attempt, failure.wait), LONGEST_PAUSE))
        raise AssertionError("the last try returns or raises")

    def _request(self, prompt: Prompt, number: int) -> Any:
        """What the server says to one request."""
        body: dict[str, Any] = {
            "model": self.teacher.model,
            "max_tokens": self.config.max_new_tokens,
            "temperature": self.config.temperature,
            "top_p": self.config.top_p,
            "seed": (self.config.seed + 7919 * number + int(prompt.key[:7], 16)) % (1 << 31),
        }
        top = self.teacher.served.top_logprobs
        if prompt.messages:
            body["messages"] = list(prompt.messages)
            body |= {"logprobs": True, "top_logprobs": top} if top else {}
        else:
            body["prompt"] = prompt.text
            body |= {"logprobs": top} if top else {}
        kind = "chat/completions" if prompt.messages else "completions"
        request = urllib.request.Request(
            f"{(self.teacher.endpoint or '').rstrip('/')}/{kind}",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"}
            | ({"Authorization": f"Bearer {self.key}"} if self.key else {}),
        )
        try:
            with urllib.request.urlopen(request, timeout=self.teacher.served.timeout) as answer:
                return json.loads(answer.read())
        except urllib.error.HTTPError as error:
            raise self._refused(error, kind) from error
        except (OSError, http.client.HTTPException) as error:  # down, cut, or too slow
            raise _PassingError(f"{type(error).__name__}: {getattr(error, 'reason', error)}") from error
        except ValueError as error:
            raise _PassingError(f"an answer that is no JSON: {error}") from error

    def _refused(self, error: urllib.error.HTTPError, kind: str) -> Exception:
        try:
            said = self._clean(error.read(SHOWN).decode(errors="replace"))
        except (OSError, http.client.HTTPException):  # it broke off
            said = "nothing more"
        reason = f"HTTP {error.code}: {said}"
        if error.code in AGAIN:
            wait = error.headers.get("Retry-After", "")
            return _PassingError(reason, float(wait) if wait.isdigit() else 0.0)
        return UserError("teacher.endpoint", f"{self.teacher.endpoint}/{kind} refuses the request: {reason}")

    def _clean(self, text: object) -> str:
        """What the server says, without the key."""
        return str(text).replace(self.key, "(key)") if self.key else str(text)


def _answer(said: Any) -> Answer:
    """The answer in what a server said.

    Raises:
        _PassingError: If it has none.
    """
    try:
        choice = said["choices"][0]
        text = choice["message"]["content"] if "message" in choice else choice["text"]
        if not isinstance(text, str):
            raise TypeError(f"content is {type(text).__name__}")
        places = list(_places(choice.get("logprobs") or {}))
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise _PassingError(
            f"an answer of another form ({type(error).__name__}: {error}): {json.dumps(said)[:SHOWN]}"
        ) from error
    logs = [log for log, _ in places]
    top = tuple(likeliest for _, likeliest in places if likeliest)
    return Answer(text, (), sum(logs) / len(logs) if logs else None, top)


def _places(logprobs: Mapping[str, Any]) -> Iterator[tuple[float, dict[str, float]]]:
    """Log-probability of each token, and the likeliest there, in the form of either kind of answer."""
    if logprobs.get("content"):
        for place in logprobs["content"]:
            likeliest = {each["token"]: float(each["logprob"]) for each in place.get("top_logprobs") or []}
            yield float(place["logprob"]), likeliest
        return
    logs = logprobs.get("token_logprobs") or []
    tops = logprobs.get("top_logprobs") or [{}] * len(logs)
    for log, likeliest in zip(logs, tops, strict=False):
        if log is not None:
            yield float(log), {str(token): float(value) for token, value in (likeliest or {}).items()}
