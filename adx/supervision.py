"""What a student is shown beside words: labels of what is served, or hidden states.

Labels also of the student's own answers; hidden states are the teacher's.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

from adx.attackers import Attackers
from adx.attacks import Attack
from adx.batching import Corpus, Example
from adx.datasets.chat import encode_prompt
from adx.defences import Undefended
from adx.errors import InputError
from adx.evaluation import seat
from adx.families import Family
from adx.hashing import content_hash
from adx.lesson_encoding import Encoded
from adx.lessons import prompts_of, shuffled
from adx.models.transformer import Params
from adx.objectives import Features, Hard, Objective, Soft
from adx.types import Prompt, Request, RequestId, Sampling

CANDIDATES = 128  # tokens that a label names, unless an attack says otherwise
EVERY, PROMPTS = 25, 128  # on-policy: steps between two fresh corpora, and the answers of one
WRITING = Sampling(temperature=1.0)  # of students whose own answers are labelled
Fresh = Callable[[Params, int], Corpus]  # (weights of the student, 0, 1, ...) -> what it learns from next


@dataclasses.dataclass(frozen=True)
class Supervision:
    """How one student is taught. fresh: makes its corpus anew every `every` steps, None if it stays.

    log_probs: how many a token were read of the teacher beside those of the lessons; asked: texts that it scored for
    them before training, asked_anew: and for each fresh corpus.
    """

    corpus: Corpus
    objective: Objective
    fresh: Fresh | None = None
    every: int = 0
    log_probs: int = 0
    asked: int = 0
    asked_anew: int = 0

    def scored(self, steps: int) -> int:
        """How many texts the teacher scored while a student took so many steps."""
        return self.asked + (self.asked_anew * -(-steps // self.every) if self.every else 0)


def supervise(attackers: Attackers, family: Family, attack: Attack, arm: str, encoded: Encoded) -> Supervision:
    """arm: whose teacher is asked; '' for lessons that have none, which are learned word by word.

    Raises InputError for a student whose vocabulary is not its teacher's, where the loss compares token by token, and
    for labels of a part of the vocabulary at a temperature: only a whole distribution has another at that temperature.
    """
    corpus = Corpus(encoded.examples, _order(attackers), encoded.weights)
    arguments = dict(attack.arguments)
    objective = Soft(arguments.get('temperature', 1.0))
    if attack.loss == 'hard' or not arm:
        return Supervision(corpus, Hard())
    if attack.loss == 'soft' and 'candidates' not in arguments:
        return Supervision(dataclasses.replace(corpus, extras=encoded.soft_labels()), objective)
    if family.tokenizer.tokens != attackers.models.tokenizer.tokens:
        raise InputError(
            f'attack {attack.name!r} compares student {family.student.name!r} with its teacher token by token, and '
            'their vocabularies differ; take another student, or an attack by hard labels'
        )
    candidates = min(arguments.get('candidates', CANDIDATES), family.tokenizer.size)
    if objective.temperature != 1.0 and candidates < family.tokenizer.size:
        raise InputError(
            f'attack {attack.name!r} has a temperature and {candidates} candidates of {family.tokenizer.size} tokens; '
            'give it all of them, or leave the temperature out'
        )
    prompts = {lesson.id: lesson.prompt for lesson in encoded.lessons}
    if attack.loss == 'features':
        features = attackers.features(arm, encoded.examples, prompts)
        size = next(iter(features.values())).shape[-1]
        corpus = dataclasses.replace(corpus, extras={'features': features})
        return Supervision(corpus, Features(arguments.get('weight', 1.0), size))
    if attack.loss == 'soft':
        labels = attackers.labels(arm, encoded.examples, prompts, candidates)
        corpus = dataclasses.replace(corpus, extras=labels)
        return Supervision(corpus, objective, log_probs=candidates, asked=len(encoded.examples))
    asked = prompts_of(encoded.lessons)
    count, every = min(arguments.get('prompts', PROMPTS), len(asked)), arguments.get('every', EVERY)
    own = _OwnAnswers(attackers, family, arm, asked, count, candidates)
    return Supervision(corpus, objective, own, every, candidates, asked_anew=count)


def _order(attackers: Attackers) -> int:
    """The seed of the order in which lessons are read."""
    return int(content_hash(['order', attackers.experiment.seed])[:8], 16)


@dataclasses.dataclass(frozen=True)
class _OwnAnswers:
    """A corpus of what a student answers by itself, labelled by its teacher (Agarwal et al., arXiv 2306.13649)."""

    attackers: Attackers
    family: Family
    arm: str
    prompts: tuple[Prompt, ...]
    count: int
    candidates: int

    def __call__(self, params: Params, turn: int) -> Corpus:
        """Answers of turn 0, 1, ... are to other prompts, until all had their turn."""
        start = turn * self.count % len(self.prompts)
        chosen = (self._shuffled * 2)[start : start + self.count]
        requests = {str(request.id): request for request in (self._request(prompt, turn) for prompt in chosen)}
        engine = self.family.engine
        seat(engine, self.family.student.name, params)
        done = sorted(engine.generate(list(requests.values())), key=lambda one: str(one.id))
        examples = [Example(str(one.id), requests[str(one.id)].tokens, one.tokens) for one in done]
        length = self.attackers.study.recipe.length
        if min(len(example.prompt) + len(example.completion) for example in examples) > length:
            raise InputError(
                f'student {self.family.student.name!r}, taught by {self.arm!r}, answers in more than recipe.length = '
                f'{length} tokens with every prompt; raise it'
            )
        prompts = {str(request.id): prompt for request, prompt in zip(requests.values(), chosen, strict=True)}
        labels = self.attackers.labels(self.arm, examples, prompts, self.candidates)
        return Corpus(examples, _order(self.attackers), extras=labels)

    @functools.cached_property
    def _shuffled(self) -> list[Prompt]:
        return shuffled(self.prompts, self.attackers.experiment.seed, 'own answers', lambda prompt: prompt.row)

    def _request(self, prompt: Prompt, turn: int) -> Request:
        family, limit = self.family, self.attackers.study.max_new_tokens
        id_ = RequestId(prompt.dataset, prompt.split, prompt.row, turn, family.student.name)
        tokens = encode_prompt(prompt.messages, family.tokenizer, family.student.prompting)
        return Request(id_, tokens, limit, WRITING, Undefended(), False)
