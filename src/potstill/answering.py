"""The teacher answers a run's prompts, before anything is learnt from its answers."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from potstill import distributed
from potstill.config import LanguageRecipe, Recipe
from potstill.data import Splits
from potstill.data.documents import Document
from potstill.data.encoding import Encoded, encode
from potstill.data.prompts import Prompt, answered, prompt_of
from potstill.data.tokens import TokenSet, read_texts, token_rows
from potstill.errors import UserError
from potstill.experiment import Experiment
from potstill.models.generation import check_writes
from potstill.models.weights import fingerprint
from potstill.responses import Answer, LanguageTeacherConfig, ResponsesConfig, ResponseStore, choose
from potstill.responses.asking import ask_network
from potstill.responses.choice import verifier_of
from potstill.responses.served import ask_server
from potstill.tasks import LanguageModeling

__all__ = ["answer_prompts", "answers_first"]

FORMAT = "1"
FOLDER = Path("runs") / "responses"
Say = Callable[[str], None]


def answers_first(recipe: Recipe) -> bool:
    """Whether a recipe's teacher answers prompts before the training."""
    return _settings(recipe) is not None


def _settings(recipe: Recipe) -> ResponsesConfig | None:
    teacher = recipe.teacher
    return teacher.responses if isinstance(teacher, LanguageTeacherConfig) else None


@dataclass(frozen=True)
class _Asked:
    """A document with its prompt."""

    document: Document
    prompt: Prompt


def answer_prompts(experiment: Experiment, say: Say) -> Experiment:
    """Let the teacher answer, and give the student its answers to learn.

    Of the training part every prompt is answered, of the others those of documents without an answer. Where
    all training documents have answers of their own, the control goes on learning those.

    Args:
        experiment: A loaded recipe with ``teacher.responses``.
        say: Told what was answered.

    Returns:
        The experiment with other training rows.

    Raises:
        UserError: If no answer may be learnt, the store belongs to another teacher, or the length of the
            training is not stated in steps.
    """
    recipe, task = experiment.recipe, experiment.task
    config = _settings(recipe)
    assert isinstance(recipe, LanguageRecipe), "answers need a language model"
    assert isinstance(task, LanguageModeling), "and its task"
    assert config is not None, "and a recipe that wants them"
    texts = read_texts(recipe.data, experiment.search, recipe.seed)
    notes: list[str] = []
    asked = {
        part: _asked(experiment, part, documents, config, notes) for part, documents in texts.parts.items()
    }
    store = ResponseStore(_folder(config, facts := _facts(experiment, config)), facts)
    prompts = {each.prompt.key: each.prompt for some in asked.values() for each in some}
    _ask(experiment, list(prompts.values()), config, store, say)
    answers = store.read()
    learnt, found = _learnt(experiment, asked, answers, config)
    notes += found
    notes.append(f"the teacher's answers lie in {store.folder}")
    made = _with_rows(experiment, texts.parts, learnt, notes)
    for note in notes:
        say(f"note: {note}")
    return made


def _asked(
    experiment: Experiment,
    part: str,
    documents: Sequence[Document],
    config: ResponsesConfig,
    notes: list[str],
) -> list[_Asked]:
    """What is asked of a part: all prompts that fit, or those without an answer; the rest is noted."""
    tokenizer = experiment.task.tokenizer  # type: ignore[attr-defined]
    found, long = [], []
    for document in documents:
        if part == "train" or document.asks:
            prompt = prompt_of(tokenizer, document, config.prompt_tokens)
            if prompt is not None and len(prompt.ids) < _room(experiment):
                found.append(_Asked(document, prompt))
            elif prompt is not None:
                long.append(document.where)
    if long:
        notes.append(
            f"{part}: {len(long)} prompts leave no room for an answer within data.max_length "
            f"({_room(experiment)} tokens) and are not asked, the first at {long[0]}"
        )
    if part == "train" and not found:
        raise UserError(
            "teacher.responses",
            f"no training document has a prompt that fits into data.max_length ({_room(experiment)} tokens)",
        )
    return found[: config.limit] if part == "train" else found


def _room(experiment: Experiment) -> int:
    """Tokens of a row."""
    train: TokenSet = experiment.splits.train
    return train.length


def _facts(experiment: Experiment, config: ResponsesConfig) -> dict[str, str]:
    """Whose answers, and how they are asked for."""
    teacher, task = experiment.recipe.teacher, experiment.task
    assert teacher is not None
    assert isinstance(task, LanguageModeling)
    words = repr(sorted(task.tokenizer.get_vocab().items())) + str(task.tokenizer.chat_template)
    asked = dataclasses.asdict(config)
    served = f"{teacher.endpoint} " if isinstance(teacher, LanguageTeacherConfig) and teacher.endpoint else ""
    return {
        "format": FORMAT,
        "teacher": f"{served}{teacher.model} {sorted(teacher.arguments.items())}",
        "weights": fingerprint(experiment.teacher)[:16] if experiment.teacher is not None else "served",
        "tokenizer": hashlib.sha256(words.encode()).hexdigest()[:16],
        **{key: str(asked[key]) for key in ("max_new_tokens", "temperature", "top_p", "samples", "seed")},
    }


def _folder(config: ResponsesConfig, facts: Mapping[str, str]) -> Path:
    if config.path is not None:
        return Path(config.path).resolve()
    digest = hashlib.sha256(repr(sorted(facts.items())).encode()).hexdigest()[:16]
    return (FOLDER / digest).resolve()


def _ask(
    experiment: Experiment, prompts: list[Prompt], config: ResponsesConfig, store: ResponseStore, say: Say
) -> None:
    assert isinstance(experiment.task, LanguageModeling)
    if experiment.teacher is None:
        assert isinstance(experiment.recipe.teacher, LanguageTeacherConfig), (
            "a teacher that is not here is served"
        )
        ask_server(experiment.recipe.teacher, prompts, store, say)
        return
    check_writes(experiment.teacher, "teacher.model")
    context = getattr(getattr(experiment.teacher, "config", None), "max_position_embeddings", None)
    longest = max(len(prompt.ids) for prompt in prompts) + config.max_new_tokens
    if isinstance(context, int) and longest > context:
        raise UserError(
            "teacher.responses.max_new_tokens",
            f"the longest prompt and its answer have {longest} tokens, the teacher's context {context}; "
            "lower it, or data.max_length",
        )
    with experiment.precision.autocast(experiment.device):
        ask_network(experiment.teacher, experiment.task.tokenizer, prompts, config, store, say)


# From answers to rows -------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Learnt:
    """A document whose answer is the teacher's, as tokens."""

    document: Document
    encoded: Encoded


def _learnt(
    experiment: Experiment,
    asked: Mapping[str, Sequence[_Asked]],
    answers: Mapping[str, Sequence[Answer]],
    config: ResponsesConfig,
) -> tuple[dict[str, list[_Learnt]], list[str]]:
    """The answers that are learnt or measured, by part, and what became of the others."""
    keep = verifier_of(config.keep, experiment.search)
    learnt: dict[str, list[_Learnt]] = {}
    notes = []
    for part, some in asked.items():
        chosen = [
            (each, choose(each.prompt.text, answers[each.prompt.key], keep if part == "train" else None))
            for each in some
        ]
        learnt[part] = [
            _Learnt(each.document, _encoded(experiment, each, found.answer))
            for each, found in chosen
            if found.answer is not None
        ]
        if some:
            refused = sum(found.refused for _, found in chosen)
            tokens = sum(sum(each.encoded.learnt) for each in learnt[part])
            notes.append(
                f"{part}: {len(learnt[part])} of {len(some)} prompts have an answer of the teacher's, "
                f"{tokens:,} tokens" + (f"; teacher.responses.keep refused {refused} answers" * bool(refused))
            )
    if not learnt["train"]:
        raise UserError("teacher.responses.keep", "refused every answer; there is nothing to learn")
    return learnt, notes


def _encoded(experiment: Experiment, asked: _Asked, answer: Answer) -> Encoded:
    """Prompt and answer as tokens: the very ones that the teacher wrote, where they are known."""
    prompt = asked.prompt
    if answer.ids:
        ids = [*prompt.ids, *answer.ids]
        return Encoded(ids, [False] * len(prompt.ids) + [True] * len(answer.ids))
    tokenizer = experiment.task.tokenizer  # type: ignore[attr-defined]
    return encode(tokenizer, [answered(asked.document, prompt, answer.text)])[0]


def _with_rows(
    experiment: Experiment,
    parts: Mapping[str, Sequence[Document]],
    learnt: Mapping[str, Sequence[_Learnt]],
    notes: list[str],
) -> Experiment:
    """The experiment with the answers as rows."""
    recipe, task, splits = experiment.recipe, experiment.task, experiment.splits
    assert isinstance(recipe, LanguageRecipe)
    assert isinstance(task, LanguageModeling)

    def rows(part: str) -> TokenSet:
        place = {each.document.where: each for each in learnt[part]}
        documents = [each.document for each in learnt[part]]
        encoded = [each.encoded for each in learnt[part]]
        if part != "train":  # those that have answers of their own are measured by them
            others = [each for each in parts[part] if not each.asks and each.where not in place]
            documents, encoded = [*documents, *others], [*encoded, *encode(task.tokenizer, others)]
        together = splits.train.together
        found, told = token_rows(
            encoded, [each.where for each in documents], part, task.tokenizer, recipe.data, together=together
        )
        notes.extend(told)
        return found

    own = not any(each.asks for each in parts["train"])
    if own and recipe.train.steps is None:
        raise UserError(
            "train.steps",
            "missing; student and control learn from different texts, so their length is stated in steps",
        )
    lessons = rows("train")
    if recipe.train.batch_size > len(lessons):
        raise UserError("train.batch_size", f"must be at most the {len(lessons)} rows of answers")
    notes.append(
        f"the student learns the teacher's answers; the control {'the texts as they are' if own else 'too'}"
    )
    changed = Splits(
        splits.train if own else lessons,
        rows("validation") if any(each.asks for each in parts["validation"]) else splits.validation,
        rows("test") if any(each.asks for each in parts["test"]) else splits.test,
        splits.notes,
    )
    counted = lessons.targets[lessons.packed.counted]
    seen = np.bincount(counted, minlength=task.vocabulary) if not own else task.frequencies
    distributed.barrier()
    return dataclasses.replace(
        experiment,
        splits=changed,
        lessons=lessons if own else None,
        task=dataclasses.replace(task, frequencies=seen),
        notes=(*experiment.notes, *notes),
    )
