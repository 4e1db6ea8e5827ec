"""The recipe's ``teacher`` section of a language model: ``responses`` to prompts, and a served teacher."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from potstill.cache.settings import TeacherConfig
from potstill.errors import UserError
from potstill.losses import Range

__all__ = ["LanguageTeacherConfig", "ResponsesConfig", "ServedConfig"]

COUNT = Range(least=1)


@dataclass(frozen=True, kw_only=True)
class ResponsesConfig:
    """The teacher answers the prompts of the data first, and the student learns the answers."""

    max_new_tokens: Annotated[int, COUNT] = 64
    """Length of an answer."""
    prompt_tokens: Annotated[int, COUNT] = 32
    """Of a text without a prompt of its own, so many tokens from its beginning are one."""
    temperature: Annotated[float, Range(least=0)] = 1.0
    """Of the sampling; 0 takes the likeliest token."""
    top_p: Annotated[float, Range(above=0, most=1)] = 1.0
    """Draw from the likeliest tokens that have this share of the probability."""
    samples: Annotated[int, COUNT] = 1
    """Answers to each prompt, of which the likeliest by token, for the teacher, is learnt."""
    keep: str | None = None
    """``file.py:function``: which answers may be learnt, called with prompt and answer; all by default."""
    limit: Annotated[int, COUNT] | None = None
    """Ask only so many prompts of the training part."""
    batch_size: Annotated[int, COUNT] = 16
    """Answers written at once; or asked of a server at once."""
    seed: Annotated[int, Range(least=0)] = 0
    """Of the sampling."""
    path: str | None = None
    """Folder of the answers; by default one of its own under ``runs/responses``."""


@dataclass(frozen=True, kw_only=True)
class ServedConfig:
    """How a served teacher is spoken to."""

    key: str | None = None
    """Name of the environment variable that holds the key; nothing else of it is ever written."""
    timeout: Annotated[float, Range(above=0)] = 60.0
    """Seconds to wait for an answer."""
    retries: Annotated[int, Range(least=0)] = 5
    """How often a request is sent again after the first failed, each time after a longer pause."""
    pause: Annotated[float, Range(above=0)] = 1.0
    """Seconds before the first repetition; each further one waits twice as long."""
    top_logprobs: Annotated[int, Range(least=0, most=20)] = 0
    """Keep the log-probabilities of so many likeliest tokens at each place, where the server gives them."""

    def __post_init__(self) -> None:
        if self.key is not None and not self.key.isidentifier():  # what came may be the key itself
            raise UserError(
                "teacher.served.key", "expected the name of an environment variable, such as MY_KEY"
            )


@dataclass(frozen=True, kw_only=True)
class LanguageTeacherConfig(TeacherConfig):
    """The language model to imitate: loaded, or asked where it is served."""

    responses: ResponsesConfig | None = None
    """It answers the prompts of the data first; the student learns its answers."""
    endpoint: str | None = None
    """Address of an OpenAI-compatible server that has ``model``, such as ``http://localhost:8000/v1``."""
    served: ServedConfig = ServedConfig()
    """How that server is spoken to."""

    def __post_init__(self) -> None:
        if self.endpoint is None:
            if self.served != ServedConfig():
                raise UserError("teacher.served", "has no meaning without teacher.endpoint; leave it out")
            return
        if not self.endpoint.startswith(("http://", "https://")):
            raise UserError("teacher.endpoint", f"expected http:// or https://, got {self.endpoint!r}")
        if {"@", "?", "#"} & set(self.endpoint):
            raise UserError(
                "teacher.endpoint", "expected an address alone; a key comes from the variable of served.key"
            )
        for name in ("weights", "cache", "init", "tokenizer", "arguments", "pretrained"):
            if getattr(self, name):
                raise UserError(f"teacher.{name}", "has no meaning for a served teacher; leave it out")
        if self.responses is None:
            object.__setattr__(self, "responses", ResponsesConfig())
