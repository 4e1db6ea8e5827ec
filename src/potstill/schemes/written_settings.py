"""The recipe's ``scheme`` section, where a language model learns from what it writes."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from potstill import distributed
from potstill.errors import UserError
from potstill.losses import Range
from potstill.models.generation import check_writes, own_batch
from potstill.schemes.ingredients import Ingredients, Networks, TeacherUse, refuse_auto
from potstill.schemes.offline import Offline
from potstill.schemes.on_policy import OnPolicy

__all__ = ["OnPolicyConfig"]

SHARE = Range(least=0, most=1)


@dataclass(frozen=True, kw_only=True)
class OnPolicyConfig:
    """A language model learns from its own texts, judged token by token by its teacher."""

    kind: Literal["on_policy"] = "on_policy"
    """Who teaches whom."""
    share: Annotated[float, SHARE] = 0.5
    """Of the batches, those that the student writes itself; the others come from the data."""
    rise: Annotated[float, SHARE] = 0.0
    """Share of the run in which that grows from 0."""
    max_new_tokens: Annotated[int, Range(least=1)] = 64
    """Length of what the student writes."""
    prompt_tokens: Annotated[int, Range(least=1)] = 32
    """It goes on after so many tokens of a text; of a conversation, after the question."""
    temperature: Annotated[float, Range(least=0)] = 1.0
    """Of the sampling; that of the losses is their own."""
    top_p: Annotated[float, Range(above=0, most=1)] = 1.0
    """Draw from the likeliest tokens that have this share of the probability."""
    replay: Annotated[int, Range(least=0)] = 0
    """How many of the newest written batches are kept to learn from again."""
    reuse: Annotated[float, SHARE] = 0.5
    """Share of the own batches that are taken from those."""

    teacher: ClassVar[TeacherUse] = "needed"
    distill: ClassVar[Mapping[str, Any]] = {"kl": {"temperature": 1.0}}

    def networks_by_name(self) -> Networks:
        """One student."""
        return {"student": None}

    def build(self, given: Ingredients) -> OnPolicy:
        """The scheme.

        Raises:
            UserError: If the student is none that writes texts, or a replay is to be shared by processes.
        """
        refuse_auto(given.objective, "on_policy")
        student = given.fresh(None, 0)
        check_writes(student, "scheme")
        if self.replay and distributed.world_size() > 1:
            raise UserError("scheme.replay", "is for one process; leave it out")
        shapes: dict[str, Any] = {"example": given.example, "samples": given.samples}
        sample = functools.partial(
            own_batch,
            most=self.max_new_tokens,
            prompt_tokens=self.prompt_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
        )
        return OnPolicy(
            Offline(student, given.teacher, given.objective, **shapes),
            sample,
            share=self.share,
            rise=self.rise,
            replay=self.replay,
            reuse=self.reuse,
            seed=given.seed,
        )
