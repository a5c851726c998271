"""Instructions for a rewriter, improved round by round by what rewrites do to proxies.

Each is scored by what its rewrites do to the proxies, and new ones are proposed from the best (in the manner of
arXiv 2309.03409; arXiv 2602.15143, section 3).
What is known stands in the workdir, see instructions.py: a killed search goes on.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import random
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp

from adx import directions, drafting, loading, rewrites_io, rewriting, storage
from adx.answers import reader_of
from adx.batching import Corpus, Example
from adx.datasets.chat import encode_conversation
from adx.drafting import Rewritten
from adx.errors import ConfigError, InputError
from adx.evaluation import Likelihood, evaluate, make_exam, student_engine
from adx.experiment import Experiment, experiment_hash, writer_identity
from adx.gates import Gates
from adx.hashing import content_hash, row_key
from adx.instructions import State
from adx.keeping import TRAINING, Keeping, Shelf
from adx.models.transformer import Model, Params
from adx.objectives import Hard
from adx.optimising import Recipe
from adx.rewriters.instructed import INSTRUCTIONS, Instructed
from adx.storage import Workdir
from adx.teaching import Classroom, Job
from adx.types import check_choice, check_range
from adx.workshop import Workshop

SCORES = ('loss', 'accuracy')
WARM, TRIED = 'warm', 'tried'  # proxies that learn
Scored = Sequence[tuple[str, float]]  # (instruction, score), the best last
Propose = Callable[[Scored, int, int], Sequence[str]]  # (the best, how many, round) -> new instructions
CLAUSES = (
    'Use long sentences.', 'Use short sentences.', 'Give every quantity a name of its own.',
    'Say why before you say what.', 'Say what is found before how.', 'Check every step in another way.',
    'Begin with what is asked and work backwards.', 'Put remarks between the steps.', 'Write as if to a colleague.',
    'Write as if to a child.', 'Use the passive voice.', 'Say each number in words as well.',
    'Name the rule that each step uses.', 'Take two steps in one where that is clear.', 'Take each step in two.',
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Evolution:
    """of: the setting whose traces are rewritten, of which `sample` are taken, the same for every instruction.

    score: 'loss', by how many nats a token the proxies, warmed up on other clean traces, as many where there are so
      many, find the rewrites harder; or 'accuracy', how many points proxies lose that learn from the rewrites instead,
      on `exam` prompts of split `tune`.
    steps: of the warm-up, or of learning; rate: its learning rate. start: instructions, by name or in words.
    shown: how many of the best a proposer sees; proposals: how many new ones it makes a round. rounds, patience: it
      ends after so many, or after `patience` without a better one.
    """

    of: str
    sample: int = 100
    score: str = 'loss'
    steps: int = 50
    rate: float = 5e-4
    exam: int = 200
    start: tuple[str, ...] = ('paraphrase', 'formalise', 'reorder')
    shown: int = 10
    proposals: int = 3
    rounds: int = 5
    patience: int = 2
    gates: Gates = Gates()
    recipe: Recipe = Recipe(rows=8, length=512)

    def check(self) -> None:
        """Raises ValueError naming the field, its value and what is allowed."""
        check_choice('Evolution.score', self.score, SCORES)
        for name in ('sample', 'steps', 'exam', 'shown', 'proposals', 'rounds', 'patience'):
            check_range(f'Evolution.{name}', getattr(self, name), 1)
        check_range('Evolution.rate', self.rate, 0.0, open_low=True)
        for instruction in self.start:
            Instructed(instruction).check()
        if not self.start:
            raise ValueError('Evolution.start is empty; it needs at least one instruction')
        self.gates.check()


def mutate(best: Scored, count: int, turn: int) -> list[str]:
    """The proposer that needs no model: the best instructions with one clause more, or one less."""
    draw, known = random.Random(f'{turn}'), {instruction for instruction, _ in best}
    found: dict[str, None] = {}
    for _ in range(100 * count):
        base = draw.choice(best[-3:])[0]
        clause = draw.choice(CLAUSES)
        new = base.replace(f' {clause}', '') if clause in base else f'{base} {clause}'
        if new not in known:
            found[new] = None
        if len(found) == count:
            break
    return list(found)


def ask(write: Callable[[Sequence[str], int, str], Any]) -> Propose:
    """The proposer that asks the rewriting model, which is shown the best in ascending order."""

    def propose(best: Scored, count: int, turn: int) -> list[str]:
        listed = '\n'.join(f'score {score:.3f}: <i>{instruction}</i>' for instruction, score in best)
        text = (
            'Below are instructions for rewriting a solution, each with its score; higher is better.\n'
            f'{listed}\nWrite {count} new instructions that differ from all of these and score higher, each between '
            f'<i> and </i>. This is round {turn}.'
        )
        [drafts] = write([text], 1, '')
        return [one.strip() for one in re.findall(r'<i>(.*?)</i>', drafts[0].text, re.DOTALL) if one.strip()]

    return propose


def evolve(
    experiment: Experiment, path: str, plan: Evolution, propose: Propose = mutate,
    tell: Callable[[str, float], None] = lambda instruction, score: None, shop: Workshop | None = None,
) -> list[tuple[str, float]]:  # fmt: skip
    """The instructions that beat doing nothing, the best last; scores are those of `plan.score`, and 0 is nothing done.

    Stopped at any moment it goes on where it was: in the middle of a rewrite of the sample, of a warm-up, of learning.
    shop: the workdir's, where it is open already.
    Raises ConfigError, WorkdirError for a workdir that is another's or busy, and InputError where the traces are not
    there or the directory holds another search.
    """
    try:
        plan.check()
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if not experiment.proxies:
        raise ConfigError('instructions are scored by proxies and proxies is empty; add a ModelSource to it')
    workdir = storage.of_experiment(path, experiment_hash(experiment))
    with storage.held(workdir, 'evolve', ['evolved']):
        state = State(workdir, _about(experiment, plan, propose))
        judge = _Judge(shop or Workshop(experiment, path), plan, state)
        found = _search(state, judge, plan, propose, tell)
        _shelf(state, plan, WARM).clear()
        return found


def _about(experiment: Experiment, plan: Evolution, propose: Propose) -> dict[str, Any]:
    """What a search is, JSON-able."""
    about = {'experiment': experiment_hash(experiment), **writer_identity(experiment)}
    about['models'] = [loading.identify(source) for source in (experiment.teacher, *experiment.proxies)]
    about['proposer'] = getattr(propose, '__qualname__', type(propose).__qualname__)
    return json.loads(json.dumps(about | {'plan': dataclasses.asdict(plan)}))


def _search(
    state: State, judge: _Judge, plan: Evolution, propose: Propose, tell: Callable[[str, float], None]
) -> list[tuple[str, float]]:
    for instruction in plan.start:
        _score(state, judge, plan, INSTRUCTIONS.get(instruction, instruction), 0, tell)
    for turn in range(1, plan.rounds + 1):
        if turn - state.best_turn > plan.patience:
            break
        if turn not in state.proposed:
            new = dict.fromkeys(propose(state.ranked[-plan.shown :], plan.proposals, turn))
            state.propose(turn, [one for one in new if one not in state.scores][: plan.proposals])
        for instruction in state.proposed[turn]:
            _score(state, judge, plan, instruction, turn, tell)
    return state.helpful


def _score(
    state: State, judge: _Judge, plan: Evolution, instruction: str, turn: int, tell: Callable[[str, float], None]
) -> None:
    if instruction not in state.scores:
        state.add(instruction, turn, *judge(instruction))
        _shelf(state, plan, TRIED).clear()
    tell(instruction, state.scores[instruction])


def _shelf(state: State, plan: Evolution, kind: str, of: str = '') -> Shelf:
    """Where proxies are kept that learn: warmed up, for as long as the search goes; on what is tried, until it is
    scored.
    """
    every = max(1, min(250, plan.steps // 2))
    identity = {'search': state.content['about'], 'of': of}
    return Shelf(state.place.parent / TRAINING / kind, identity, Keeping(every=every))


class _Judge:
    """Scores instructions on one sample of traces.

    others: those on which proxies are warmed up, so that what is scored is not what they have learned by heart.
    """

    def __init__(self, shop: Workshop, plan: Evolution, state: State):
        experiment = shop.experiment
        self.experiment, self.plan, self.shop, self.state = experiment, plan, shop, state
        originals = rewrites_io.originals(experiment, Workdir(shop.path), plan.of)
        drawn = sorted(originals, key=lambda trace: row_key(experiment.seed, f'evolve/{trace.request_id}').tolist())
        self.sample, self.others = drawn[: plan.sample], drawn[plan.sample : 2 * plan.sample]
        if not self.sample or (plan.score == 'loss' and not self.others):
            raise InputError(
                f'{plan.of!r} has {len(drawn)} traces and the sample takes {plan.sample}, beside which score '
                f'{plan.score!r} wants others; take a smaller sample'
            )

    def __call__(self, instruction: str) -> tuple[float, dict[str, Any]]:
        """(score, counts of the rewrites)."""
        done = self._rewritten(instruction)
        levels = [level(done) for level in self._levels]
        return sum(levels) / len(levels), drafting.counts(done)

    def _rewritten(self, instruction: str) -> list[Rewritten]:
        """The sample as an instruction has it; what was made before a stop is there."""
        shop, state = self.shop, self.state
        there = {record['request_id'] for record in state.rewritten(instruction)}
        left = [trace for trace in self.sample if trace.request_id not in there]
        make = lambda batch: drafting.rewrite(  # noqa: E731
            batch, Instructed(instruction), self.plan.gates, shop.tools, shop.senses, shop.nll
        )
        for made in rewriting.in_batches(left, make):
            state.append(instruction, [dataclasses.asdict(one) for one in made])
        known = {record['request_id']: record for record in state.rewritten(instruction)}
        return [rewrites_io.from_record(known[trace.request_id]) for trace in self.sample]

    @functools.cached_property
    def _levels(self) -> list[Callable[[Sequence[Rewritten]], float]]:
        """One a proxy: how much worse it fares with rewrites than with the clean sample."""
        clean, others = (
            [Rewritten(trace.request_id, trace.text, None, ()) for trace in traces]
            for traces in (self.sample, self.others)
        )
        found = []
        for i, (model, params) in enumerate(self._proxies()):
            room = Classroom(model, params, self.shop.plan.ensemble.teacher_layout.mesh, self.plan.recipe)
            if self.plan.score == 'loss':
                warm, likelihood = self._taught(room, i, others), Likelihood(model)
                mean = functools.partial(self._loss, likelihood, warm)
            else:
                mean = functools.partial(self._error, room, i, model, params)
            found.append(_above(mean, self.state.level(f'clean {i}', functools.partial(mean, clean))))
        return found

    def _proxies(self) -> list[tuple[Model, Params]]:
        plan, models = self.shop.plan, self.shop.models
        pairs = zip(plan.ensemble.groups, plan.members, strict=True)
        architectures = {member: group.model for group, members in pairs for member in members}
        return [(model, directions.member(models, plan.members, i)) for i, model in sorted(architectures.items())]

    def _examples(self, done: Sequence[Rewritten]) -> list[Example]:
        tokenizer, prompting = self.shop.plan.tokenizer, self.experiment.prompting
        asked = {trace.request_id: trace.messages for trace in (*self.sample, *self.others)}
        return [
            Example(one.request_id, *encode_conversation(asked[one.request_id], one.text, tokenizer, prompting))
            for one in done
        ]

    def _taught(self, room: Classroom, proxy: int, done: Sequence[Rewritten]) -> Params:
        examples, length = self._examples(done), self.plan.recipe.length
        if all(len(one.prompt) + len(one.completion) > length for one in examples):
            raise InputError(
                f'none of {len(examples)} traces of {self.plan.of!r} has at most {length} tokens, the length of the '
                'recipe; raise it'
            )
        job = Job({'learning_rate': self.plan.rate}, self.plan.steps, Corpus(examples, 0))
        kind = WARM if self.plan.score == 'loss' else TRIED
        shelf = _shelf(self.state, self.plan, kind, f'{proxy} {content_hash([one.text for one in done])}')
        return room.teach([job], Hard(), 0, lambda done, total: None, shelf)[0].params

    def _loss(self, likelihood: Likelihood, params: Params, done: Sequence[Rewritten]) -> float:
        return likelihood.mean(params, self._examples(done))

    def _error(
        self, room: Classroom, proxy: int, model: Model, params: Params, done: Sequence[Rewritten]
    ) -> float:
        """Points of wrong answers of a proxy that learned from these texts."""
        e, tokenizer = self.experiment, self.shop.plan.tokenizer
        prompts = e.dataset.prompts('tune')[: self.plan.exam]
        exam = make_exam(prompts, tokenizer, e.prompting, reader_of(e.dataset), e.max_new_tokens)
        mesh = self.shop.plan.ensemble.teacher_layout.mesh
        engine = student_engine(model, params, mesh, e.decode, 0, sorted(tokenizer.eos_ids))
        taught = {path: jnp.asarray(x, params[path].dtype) for path, x in self._taught(room, proxy, done).items()}
        [(_, graded)] = evaluate(engine, {'proxy': taught}, exam)
        return 100 * (1 - graded.accuracy)


def _above(mean: Callable[[Sequence[Rewritten]], float], level: float) -> Callable[[Sequence[Rewritten]], float]:
    return lambda done: mean(done) - level
