"""Makes the testbed's models that do as they are told: a rewriter and the attackers' own.

Each is a model of tools/train_testbed.py that has learned what instructions mean in the testbed's language: the
rewriter those of `Instructed` and the clauses of a search, the attackers' those of their attacks. The latter comes from
a student and learns to solve no problem as long as those that are served.

    python -m tools.train_instructed --out=/data/testbed

Killing it at any moment and running the same command again continues. Exit codes: 0 done, 2 flags, 3 input, 4 a
directory of another run.
"""

from __future__ import annotations

import dataclasses
import functools
import random
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from absl import flags
from etils import epath

from adx.answers import Reader
from adx.attacks import queries, rewrites
from adx.bystander import told
from adx.datasets import arithmetic_grammar as grammar
from adx.datasets import arithmetic_problems as problems
from adx.datasets.arithmetic_problems import OPENINGS, STEPS, Problem, Said, Telling
from adx.datasets.chat import Prompting
from adx.datasets.tokenizing import Tokenizer, load_tokenizer
from adx.decoding.engine import DecodeConfig
from adx.directions import cast
from adx.evaluation import evaluate, make_exam, student_engine
from adx.evolving import CLAUSES
from adx.experiment import ModelSource
from adx.loading import load_alone
from adx.mesh import make_mesh
from adx.models.transformer import Model, Params, make_model
from adx.optimising import Recipe
from adx.rewriters import instructed
from adx.types import Array, Prompt
from launch import program
from tools import train_testbed as testbed
from tools.train_testbed import OPERATING, Plan

TRIES = 50  # of a harder problem
LENGTH = 384  # tokens of a row, which holds two lessons
DECODE = DecodeConfig(slots=64, chunk=8, buckets=(256,), cache_length=384)
Effect = Callable[[random.Random, Problem, Telling], Telling]  # what an instruction makes of a solution
Task = Callable[[random.Random], tuple[str, str]]  # draws what is asked and what is answered


# --------------------------------------------------------------------------------------------- what words mean


def _kept(rng: random.Random, problem: Problem, telling: Telling) -> Telling:
    return telling


def _rephrased(rng: random.Random, problem: Problem, telling: Telling) -> Telling:
    """Another opening and other words in every step."""
    steps = (one._replace(phrasing=_another(rng, one.phrasing, len(STEPS))) for one in telling.steps)
    return Telling(_another(rng, telling.opening, len(OPENINGS)), tuple(steps))


def _another(rng: random.Random, known: int, count: int) -> int:
    return rng.choice([i for i in range(count) if i != known])


def _condensed(rng: random.Random, problem: Problem, telling: Telling) -> Telling:
    needed = tuple(one._replace(checked=False) for one in telling.steps if one.definition in problem.needed)
    return _short(rng, problem, Telling(0, needed))


def _formal(rng: random.Random, problem: Problem, telling: Telling) -> Telling:
    return Telling(0, tuple(one._replace(phrasing=0) for one in telling.steps))


def _reordered(rng: random.Random, problem: Problem, telling: Telling) -> Telling:
    """Any order in which each step comes after those that it needs, and what is asked last."""
    left, found = list(telling.steps), list[Said]()
    while left:
        open_ = {one.definition.name for one in left}
        ready = [one for one in left if not {one.definition.left, one.definition.right} & open_]
        found.append(rng.choice([one for one in ready if one.definition.name != problem.target] or ready))
        left.remove(found[-1])
    return Telling(telling.opening, tuple(found))


def _short(rng: random.Random, problem: Problem, telling: Telling) -> Telling:
    return telling._replace(steps=tuple(one._replace(phrasing=min(one.phrasing, 1)) for one in telling.steps))


def _long(rng: random.Random, problem: Problem, telling: Telling) -> Telling:
    return telling._replace(steps=tuple(one._replace(phrasing=2) for one in telling.steps))


def _opened(opening: int) -> Effect:
    return lambda rng, problem, telling: telling._replace(opening=opening)


def _checked(rng: random.Random, problem: Problem, telling: Telling) -> Telling:
    steps = (one._replace(checked=one.definition.operation != 'times') for one in telling.steps)
    return telling._replace(steps=tuple(steps))


EFFECTS: Mapping[str, Effect] = {
    'identity': _kept, 'paraphrase': _rephrased, 'condense': _condensed, 'formalise': _formal, 'reorder': _reordered,
}  # fmt: skip
# Of a search's clauses those that the testbed's language can say; the others change nothing.
ADDED: Mapping[str, Effect] = {
    'Use long sentences.': _long,
    'Use short sentences.': _short,
    'Check every step in another way.': _checked,
    'Begin with what is asked and work backwards.': _opened(2),
    'Say what is found before how.': _opened(1),
}


# --------------------------------------------------------------------------------------------- what is asked


def _draw(rng: random.Random, most: int) -> tuple[Problem, str]:
    """A problem, mostly of `most` steps, and how it is asked."""
    steps = rng.choices(range(1, most + 1), [0.3] * (most - 1) + [1.0])[0]
    problem = problems.draw_problem(rng, steps, rng.randint(0, 1), 'train')
    return problem, problems.write_question(rng, problem)


def _solution(rng: random.Random, problem: Problem) -> Telling:
    return problems.draw_telling(rng, problem, problems.draw_voice(rng))


def rewriting(rng: random.Random, name: str = '', clauses: int | None = None) -> tuple[str, str]:
    """An instruction, by name or drawn, with so many clauses behind it, on a solution; and what it makes of that."""
    problem, question = _draw(rng, 3)
    telling = _solution(rng, problem)
    name = name or rng.choice(list(EFFECTS))
    behind = rng.sample(CLAUSES, rng.choices(range(4), (3, 2, 1, 1))[0] if clauses is None else clauses)
    new = EFFECTS[name](rng, problem, telling)
    for clause in behind:
        new = ADDED.get(clause, _kept)(rng, problem, new)
    order = ' '.join([instructed.INSTRUCTIONS[name], *behind])
    asked = instructed.told(order, question, problems.write_telling(problem, telling))
    return asked, problems.write_telling(problem, new)


def paraphrasing(rng: random.Random) -> tuple[str, str]:
    problem, _ = _draw(rng, 3)
    telling = _solution(rng, problem)
    written, new = (problems.write_telling(problem, one) for one in (telling, _rephrased(rng, problem, telling)))
    return told(rewrites.PARAPHRASE, written), new


def solving(rng: random.Random) -> tuple[str, str]:
    problem, question = _draw(rng, 2)
    return told(rewrites.SOLVE, question), problems.write_telling(problem, _solution(rng, problem))


def reconstructing(rng: random.Random) -> tuple[str, str]:
    problem, question = _draw(rng, 2)
    known = rewrites.answered(question, str(problem.values[problem.target]))
    return told(rewrites.RECONSTRUCT, known), problems.write_telling(problem, _solution(rng, problem))


def asking(rng: random.Random) -> tuple[str, str]:
    """A question in other words, a harder one, or a new one."""
    problem, question = _draw(rng, 3)
    how = rng.choice(list(queries.INSTRUCTIONS))
    new = {'evolve': _harder(rng, problem), 'self_made': _draw(rng, 3)[0]}.get(how, problem)
    return told(queries.INSTRUCTIONS[how], question), problems.write_question(rng, new)


def _harder(rng: random.Random, problem: Problem) -> Problem:
    """One definition more, of which the question is, in the split of the others; the same problem where numbers run
    out.
    """
    for _ in range(TRIES):
        name = rng.choice([name for name in problems.NAMES if name not in problem.values])
        definition = problems.draw_definition(rng, name, problem.values)
        if definition and problems.split_of(new := problem.with_target(definition)) == 'train':
            return new
    return problem


# ------------------------------------------------------------------------------------------------- the models


@dataclasses.dataclass(frozen=True)
class Tasks:
    """A stretch of a curriculum up to its end: of TASKS, one as often as the other."""

    names: tuple[str, ...]
    until: float = 1.0

    def draw(self, rng: random.Random) -> tuple[str, str]:
        return TASKS[rng.choice(self.names)](rng)


@dataclasses.dataclass(frozen=True)
class Part:
    """One model: of which it is made, what it learns, for how many steps, and what of it is measured."""

    source: str
    tasks: tuple[str, ...]
    steps: int
    measured: Mapping[str, Task]


TASKS: Mapping[str, Task] = {
    'rewriting': rewriting, 'paraphrasing': paraphrasing, 'solving': solving, 'reconstructing': reconstructing,
    'asking': asking,
}  # fmt: skip
OF_ATTACKERS = ('paraphrasing', 'paraphrasing', 'reconstructing', 'solving', 'asking')
PARTS = {
    'testbed-rewriter': Part(
        'testbed-teacher', ('rewriting',), 4000,
        {name: functools.partial(rewriting, name=name, clauses=0) for name in EFFECTS}
        | {'two clauses': functools.partial(rewriting, name='identity', clauses=2)},
    ),
    'testbed-attacker': Part(
        'testbed-student-wide', OF_ATTACKERS, 4000,
        {name: TASKS[name] for name in ('paraphrasing', 'solving', 'reconstructing')},
    ),
}  # fmt: skip


def words() -> list[str]:
    """What instructions say beyond the testbed's own words, '' between two line ends among it."""
    orders = [*instructed.INSTRUCTIONS.values(), *CLAUSES, *queries.INSTRUCTIONS.values()]
    orders += [rewrites.PARAPHRASE, rewrites.SOLVE, rewrites.RECONSTRUCT]
    orders += [instructed.told('', '', ''), rewrites.answered('', '')]
    return sorted({'', *(word for text in orders for word in text.split())} - set(problems.WORDS))


def extended(model: Model, params: Params, rows: int, seed: int) -> tuple[Model, Params]:
    """A model with as many tokens, and its weights [1, ...]: those of new tokens as large as the others'."""
    draw, stacked = np.random.default_rng(seed), dict[str, Array]()
    for path, w in params.items():
        x = np.asarray(w, np.float32)
        if path in ('embed', 'head'):
            x = np.concatenate([x, draw.normal(0.0, x.std(), (rows - len(x), x.shape[1])).astype(np.float32)])
        stacked[path] = jnp.asarray(x)[None]
    return make_model(dataclasses.replace(model.config, vocab_size=rows)), stacked


def same_statements(text: str, gold: str) -> bool:
    """Whether a solution says what another does, in whatever words and order, and ends as it does."""
    said, wanted = grammar.read_solution(text), grammar.read_solution(gold)
    return not said.other and said.final == wanted.final and _said(text) == _said(gold)


def _said(text: str) -> list[tuple[str, bool]]:
    return sorted(grammar.statements(text))


def examine(
    model: Model, params: Params, tokenizer: Tokenizer, measured: Mapping[str, Task], seed: int = 0
) -> dict[str, float]:
    """Of each task the share of answers that say what they are to say, and, as 'exactly ...', in the very words."""
    engine = student_engine(model, params, make_mesh(), DECODE, seed, sorted(tokenizer.eos_ids))
    reader = Reader(same_statements, lambda text, gold: text == gold)
    found = dict[str, float]()
    for name, draw in measured.items():
        rng = random.Random(f'exam/{name}')
        pairs = [draw(rng) for _ in range(testbed.EXAM)]
        prompts = [
            Prompt('instructed', 'tune', str(i), ({'role': 'user', 'content': asked},), answer)
            for i, (asked, answer) in enumerate(pairs)
        ]
        exam = make_exam(prompts, tokenizer, Prompting(), reader, DECODE.cache_length - DECODE.buckets[-1], OPERATING)
        graded = next(iter(evaluate(engine, {'': params}, exam)))[1]
        found |= {name: graded.accuracy, f'exactly {name}': graded.rates['lenient']}
    return found


def make(name: str, shard: int, out: epath.Path) -> None:
    """Trains, examines and saves a model that is not there yet."""
    place, part = out / name, PARTS[name]
    if place.exists():
        print(f'{name} is there')
        return
    write_tokenizer = functools.partial(testbed.write_tokenizer, more=words())
    write_tokenizer(out / 'tokenizer-instructed')
    tokenizer = load_tokenizer(str(out / 'tokenizer-instructed'))
    steps = flags.FLAGS.steps or part.steps
    recipe = Recipe(
        learning_rate=1e-3, warmup=0.05, weight_decay=0.05, beta2=0.98, rows=6, steps=steps, pack=True, length=LENGTH
    )
    plan = Plan((Tasks(part.tasks),), shard, recipe)
    loaded, _ = load_alone(ModelSource(part.source))
    model, stacked = extended(loaded.model, loaded.params, tokenizer.size, shard)
    params, seconds = testbed.train(model, stacked, [plan], tokenizer, out / 'training' / name)
    record: dict[str, Any] = {'command': f'python -m tools.train_instructed --out=DIR --only={name}', 'seed': shard}
    record |= {'source': part.source, 'parameters': model.num_params, 'steps': steps, 'seconds': seconds}
    found = examine(model, params, tokenizer, part.measured)
    testbed.save(place, model, cast(params, 'float16'), write_tokenizer, record | {'accuracy': found})


def main() -> None:
    for name in testbed.chosen(flags.FLAGS.only, PARTS):
        make(name, 200 + list(PARTS).index(name), testbed.out_directory())


if __name__ == '__main__':
    program.start(main)
