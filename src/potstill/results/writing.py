"""What language models write: continuations side by side, and drafts that a teacher would accept."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from potstill.alive import Alive
from potstill.config import LanguageRecipe
from potstill.data.tokens import TokenSet
from potstill.errors import UserError
from potstill.experiment import Experiment
from potstill.harness import ask_harness
from potstill.matching.taps import first_tensor
from potstill.measure import Stopwatch, size_bytes
from potstill.metrics.perplexity import token_closeness
from potstill.metrics.verdict import mean_interval
from potstill.models.pretrained import quiet_library
from potstill.results.likeness import likeness
from potstill.results.outcome import Outcome
from potstill.tasks import LanguageModeling

__all__ = ["Acceptance", "Writing", "acceptance", "assisted", "continuations", "writing", "written"]

PROMPTS, PROMPT_TOKENS, NEW_TOKENS = 6, 24, 32
SHOWN = 3
DRAFTED = 4
ROUNDS, LONGEST_SECONDS = 5, 20.0


@dataclass(frozen=True)
class Acceptance:
    """How often a teacher would accept what a student drafts, in speculative decoding.

    Attributes:
        rate: Mean over prefixes of 1 less the total variation of both next-token distributions.
        interval: Its 95 % interval over prompts.
        prefixes: Number of prefixes.
        measured: Share of drafted tokens that transformers' assisted generation accepted, in rounds of
            ``DRAFTED``; lower, since what follows a rejection counts as rejected.
        tokens_a_pass: Tokens that one pass of the teacher gave there; 1 without a draft model.
    """

    rate: float
    interval: tuple[float, float]
    prefixes: int
    measured: float = math.nan
    tokens_a_pass: float = math.nan


@dataclass(frozen=True)
class Writing:
    """What it costs a network to write, with a cache of keys and values.

    Attributes:
        tokens_per_second: Median over rounds in which the networks took turns, all texts together.
        peak_bytes: Its weights, and the most bytes of tensors at once beside them; on a GPU what its
            allocator gave out.
        texts: Texts that were written at once.
        tokens: New tokens of each, after prompts of ``prompt_tokens``.
        prompt_tokens: See there.
        threads: Threads of the processor.
    """

    tokens_per_second: float
    peak_bytes: int
    texts: int
    tokens: int
    prompt_tokens: int
    threads: int


def written(experiment: Experiment, outcome: Outcome) -> dict[str, Any]:
    """Continuations of test documents by all networks, and the acceptance rate of control and student.

    Returns:
        ``generations`` for the report, ``drafts``, an :class:`Acceptance` an arm, its ``likeness`` to the
        teacher, ``writing``, a :class:`Writing` a network, ``harness``, what public benchmarks say of each,
        where the recipe names some, and ``warnings``; empty for other tasks.
    """
    task, part = experiment.task, experiment.splits.test
    if not isinstance(task, LanguageModeling) or not isinstance(part, TokenSet):
        return {}
    which = experiment.recipe.train.select
    teacher = None if experiment.known is not None else experiment.teacher  # one that is known stays unloaded
    networks: dict[str, Any] = {} if teacher is None else {"teacher": teacher}
    for arm, found in outcome.arms.items():
        model = found.cells[0].load(experiment.blank(arm), which)
        networks[arm] = model.to(experiment.device)
    if not all(hasattr(network, "generate") for network in networks.values()):
        return {}
    prompts = _prompts(part).to(experiment.device)
    texts = {
        arm: continuations(network, prompts[:SHOWN], task.tokenizer) for arm, network in networks.items()
    }
    shown = task.tokenizer.batch_decode(prompts[:SHOWN])
    rows = tuple(
        {"prompt": prompt, **{arm: some[place] for arm, some in texts.items()}}
        for place, prompt in enumerate(shown)
    )
    drafts = {}
    if teacher is not None and len(prompts) > 1:
        torch.manual_seed(experiment.recipe.seed)
        sampled = _continued(teacher, prompts, task.tokenizer, sample=True)
        drafts = {
            arm: assisted(
                acceptance(networks[arm], teacher, sampled, PROMPT_TOKENS),
                networks[arm],
                teacher,
                prompts[:SHOWN],
                task.tokenizer,
            )
            for arm in ("control", "student")
            if arm in networks
        }
    alike: dict[str, Any] = {}
    if teacher is not None:
        arms = {arm: network for arm, network in networks.items() if arm != "teacher"}
        alike = likeness(arms, teacher, part, task.tokenizer, experiment.recipe.seed)
    costs = writing(networks, prompts[:SHOWN], task.tokenizer) if len(prompts) else {}
    recipe = experiment.recipe
    assert isinstance(recipe, LanguageRecipe), "recipes of this task are read as such"
    public, warnings = {}, []
    try:
        public = ask_harness(networks, task.tokenizer, recipe.evaluation, experiment.search, recipe.seed)
    except UserError as error:  # all else is measured by now
        warnings = [str(error)]
    return {
        "generations": rows,
        "drafts": drafts,
        "likeness": alike,
        "writing": costs,
        "harness": public,
        "warnings": warnings,
    }


def _prompts(part: TokenSet) -> Tensor:
    """The beginnings of some documents, ``(P, L)``, spread over the part."""
    rows, places = np.nonzero(part.packed.positions == 0)
    long = [
        (row, place)
        for row, place in zip(rows, places, strict=True)
        if place + PROMPT_TOKENS <= part.length
        and part.packed.positions[row, place + PROMPT_TOKENS - 1] == PROMPT_TOKENS - 1
        and part.packed.documents[row, place] >= 0
    ]
    chosen = [long[at] for at in np.unique(np.linspace(0, len(long) - 1, PROMPTS).round().astype(int))]
    cut = [part.packed.tokens[row, place : place + PROMPT_TOKENS] for row, place in chosen if long]
    return torch.from_numpy(np.stack(cut).astype(np.int64)) if cut else torch.zeros(0, PROMPT_TOKENS).long()


def continuations(network: Any, prompts: Tensor, tokenizer: Any) -> list[str]:
    """What a network writes after each prompt, always its likeliest token.

    Args:
        network: A causal language model of transformers.
        prompts: Token ids ``(P, L)``.
        tokenizer: Decodes what is written.
    """
    if not len(prompts):
        return []
    made = _continued(network, prompts, tokenizer, sample=False)[:, prompts.shape[1] :]
    texts: list[str] = tokenizer.batch_decode(made, skip_special_tokens=True)
    return texts


@torch.no_grad()
def _continued(network: Any, prompts: Tensor, tokenizer: Any, *, sample: bool, **options: Any) -> Tensor:
    training = network.training
    network.eval()
    made: Tensor = network.generate(
        input_ids=prompts,
        attention_mask=torch.ones_like(prompts),
        max_new_tokens=NEW_TOKENS,
        do_sample=sample,
        use_cache=True,
        pad_token_id=tokenizer.pad_token_id or tokenizer.eos_token_id or 0,
        **({"top_k": 0} if sample else {}),
        **options,
    )
    network.train(training)
    return made


def writing(networks: Mapping[str, Any], prompts: Tensor, tokenizer: Any) -> dict[str, Writing]:
    """What writing costs each network; every text is as long, so an end token ends none.

    Args:
        networks: Causal language models of transformers, by name.
        prompts: Token ids ``(P, L)``, at least one.
        tokenizer: Names the padding.
    """
    peaks = {name: size_bytes(each) + _peak(each, prompts, tokenizer) for name, each in networks.items()}
    seconds: dict[str, list[float]] = {name: [] for name in networks}
    whole = Stopwatch()
    for number in range(ROUNDS):
        if number and whole.seconds > LONGEST_SECONDS:
            break
        for name, network in networks.items():
            watch = Stopwatch()
            _continued(network, prompts, tokenizer, sample=False, min_new_tokens=NEW_TOKENS)
            seconds[name].append(watch.seconds)
    sizes = {"texts": len(prompts), "tokens": NEW_TOKENS, "prompt_tokens": prompts.shape[1]}
    return {
        name: Writing(
            tokens_per_second=len(prompts) * NEW_TOKENS / statistics.median(times),
            peak_bytes=peaks[name],
            threads=torch.get_num_threads(),
            **sizes,
        )
        for name, times in seconds.items()
    }


def _peak(network: Any, prompts: Tensor, tokenizer: Any) -> int:
    """Most bytes of tensors at once while a network writes, its weights not counted."""
    if prompts.is_cuda:
        torch.cuda.reset_peak_memory_stats(prompts.device)
        before = torch.cuda.memory_allocated(prompts.device)
        _continued(network, prompts, tokenizer, sample=False, min_new_tokens=NEW_TOKENS)
        return int(torch.cuda.max_memory_allocated(prompts.device)) - before
    alive = Alive()
    with alive:
        _continued(network, prompts, tokenizer, sample=False, min_new_tokens=NEW_TOKENS)
    return alive.peak


def assisted(found: Acceptance, student: Any, teacher: Any, prompts: Tensor, tokenizer: Any) -> Acceptance:
    """What transformers' assisted generation makes of the student's drafts, sampling at temperature 1.

    The student always drafts ``DRAFTED`` tokens (constant schedule, confidence threshold 0).

    Args:
        found: The rate over prefixes.
        student: Drafts.
        teacher: Accepts or rejects.
        prompts: Token ids ``(P, L)``.
        tokenizer: Names the padding.

    Returns:
        ``found`` with ``measured`` and ``tokens_a_pass``.
    """
    settings = student.generation_config
    settings.num_assistant_tokens, settings.num_assistant_tokens_schedule = DRAFTED, "constant"
    settings.assistant_confidence_threshold = 0.0
    passes, tokens = [0], 0

    def count(*_: Any) -> None:
        passes[0] += 1

    handle = teacher.register_forward_hook(count)
    try:
        with quiet_library():
            for prompt in prompts:
                made = _continued(teacher, prompt[None], tokenizer, sample=True, assistant_model=student)
                tokens += made.shape[1] - len(prompt)
    finally:
        handle.remove()
    rounds = max(passes[0], 1)
    share = (tokens - rounds) / (DRAFTED * rounds)
    return replace(found, measured=share, tokens_a_pass=tokens / rounds)


@torch.no_grad()
def acceptance(student: nn.Module, teacher: nn.Module, texts: Tensor, prompt: int) -> Acceptance:
    """Acceptance rate of a student's drafts over prefixes of texts that the teacher sampled.

    Args:
        student: Drafts.
        teacher: Accepts or rejects.
        texts: ``(P, L)`` tokens that the teacher sampled after prompts.
        prompt: Length of the prompts; prefixes end at it or later.

    Reference:
        Leviathan, Kalman, Matias, "Fast Inference from Transformers via Speculative Decoding", 2023,
        https://arxiv.org/abs/2211.17192
    """
    logits = []
    for network in (student, teacher):
        network.eval()
        found = first_tensor(network(input_ids=texts))
        assert found is not None, "a language model gives logits"
        logits.append(found[:, prompt - 1 : -1].float())
    overlap = token_closeness(*logits)["overlap"].double().cpu()
    per_prompt = overlap.mean(dim=1).numpy()[None]
    return Acceptance(float(overlap.mean()), mean_interval(per_prompt), overlap.numel())
