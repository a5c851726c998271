"""The testbed's writer: seeded problems of several steps, solved in many phrasings.

A problem says who has how many and how others follow from that; a solution computes one of them step by step. A step
repeats what the problem says, then every name with its number. What a name has follows the name with a colon, a word of
its own that is nobody's operand: one lookup then finds every next word, and models of under a million weights learn the
task. Numbers are 0 to `LIMIT`.

    Tom: 7 . Bob: Tom minus Ann . Ann: 3 . how many has Bob ?

    Bob: Tom minus Ann is Tom: 7 minus Ann: 3 so Bob: 4
    #### 4

What reads these texts is in arithmetic_grammar.py and shares no code with what writes them.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from adx.datasets.splits import assign

LIMIT = 20  # of every number
NAMES = (
    'Ada', 'Ben', 'Cai', 'Dan', 'Eva', 'Fay', 'Gus', 'Hal', 'Ida', 'Jon', 'Kim', 'Leo',
    'Mia', 'Ned', 'Ola', 'Pia', 'Quy', 'Ray', 'Sue', 'Tom', 'Uma', 'Vic', 'Wes', 'Zoe',
)  # fmt: skip
OPERATIONS = ('plus', 'minus', 'times')
# The last phrasing of each is seen in `test` only: of words that all know, in an order that no training text has.
OPENERS = ('', 'now ', 'we know ', 'now we know ')
GIVEN, DERIVED = '{x}: {n} .', '{x}: {a} {op} {b} .'
ASKED = ('how many has {x} ?', 'what has {x} ?', 'now what has {x} ?')
STEPS = (
    '{x}: {l} {op} {r} is {a} {op} {b} so {x}: {n}',
    '{x}: {l} {op} {r} or {a} {op} {b} makes {x}: {n}',
    '{x}: {l} {op} {r} with {a} and {b} : {i} {op} {j} is {n} so {x}: {n}',
)
OPENINGS = ('', 'find {x}', 'the question is {x}')
ALL = 'what has all ?'
WORDS = (
    *NAMES, *(f'{name}:' for name in NAMES), *map(str, range(LIMIT + 1)), *OPERATIONS,
    'has', '.', 'now', 'we', 'know', 'how', 'many', 'what', 'all', '?', 'so', 'makes', 'and', ':', 'is',
    'find', 'the', 'question', 'check', 'with', 'or', '####',
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Definition:
    """`name` has `left` `operation` `right`; right is a name or a number."""

    name: str
    left: str
    operation: str
    right: str | int

    def operands(self, values: dict[str, int]) -> tuple[int, int]:
        return values[self.left], values[self.right] if isinstance(self.right, str) else self.right

    def value(self, values: dict[str, int]) -> int:
        return apply(self.operation, *self.operands(values))


@dataclasses.dataclass(frozen=True)
class Problem:
    """values: of every name. definitions: of the derived names, each after what it needs. target: what is asked."""

    values: dict[str, int]
    definitions: tuple[Definition, ...]
    target: str

    @property
    def needed(self) -> tuple[Definition, ...]:
        """The definitions that the target follows from, in their order."""
        wanted, found = {self.target}, []
        for definition in reversed(self.definitions):
            if definition.name in wanted:
                found.append(definition)
                wanted |= {definition.left, str(definition.right)}
        return tuple(reversed(found))

    def with_target(self, definition: Definition) -> Problem:
        """One definition more, which is what is asked."""
        values = self.values | {definition.name: definition.value(self.values)}
        return Problem(values, (*self.definitions, definition), definition.name)


@dataclasses.dataclass(frozen=True)
class Voice:
    """How one author writes: weights of STEPS and of OPENINGS, and how often a step is checked or a detour taken."""

    steps: tuple[float, ...]
    openings: tuple[float, ...]
    check: float
    detour: float


class Said(NamedTuple):
    """A step as it is told. phrasing: index in STEPS. checked: never where the operation is 'times'."""

    definition: Definition
    phrasing: int
    checked: bool


class Telling(NamedTuple):
    """A solution before it is words. opening: index in OPENINGS."""

    opening: int
    steps: tuple[Said, ...]


def apply(operation: str, i: int, j: int) -> int:
    return {'plus': i + j, 'minus': i - j, 'times': i * j}[operation]


def draw_problem(rng: random.Random, steps: int, distractors: int, split: str) -> Problem:
    """A problem of `split` whose target needs `steps` definitions, with so many others that it does not need."""
    problem = None
    while problem is None:
        problem = _grow(rng, steps, distractors)
    while split_of(problem) != split:
        problem = _rename(problem, rng)
    return problem


def split_of(problem: Problem) -> str:
    """The split that a problem is of, by a hash of what it says, whatever the words."""
    return assign(' '.join(map(str, (sorted(problem.values.items()), problem.definitions, problem.target))), True)


def _rename(problem: Problem, rng: random.Random) -> Problem:
    names: dict[Any, Any] = dict(zip(problem.values, rng.sample(NAMES, len(problem.values)), strict=True))
    definitions = tuple(
        Definition(names[d.name], names[d.left], d.operation, names.get(d.right, d.right)) for d in problem.definitions
    )
    values = {names[name]: value for name, value in problem.values.items()}
    return Problem(values, definitions, names[problem.target])


def _grow(rng: random.Random, steps: int, distractors: int) -> Problem | None:
    """Names one after the other, newest first as operands so that chains get long; None where numbers run out."""
    names = rng.sample(NAMES, 2 * steps + distractors + 2)
    givens = rng.randint(2, steps + 1)
    values = {names.pop(): rng.randint(1, LIMIT) for _ in range(givens)}
    definitions: list[Definition] = []
    for _ in range(steps + distractors):
        definition = draw_definition(rng, names.pop(), values)
        if definition is None:
            return None
        definitions.append(definition)
        values[definition.name] = definition.value(values)
    order = [definition.name for definition in definitions]
    fitting = [name for name in order if len(Problem(values, tuple(definitions), name).needed) == steps]
    return Problem(values, tuple(definitions), rng.choice(fitting)) if fitting else None


def draw_definition(rng: random.Random, name: str, values: dict[str, int]) -> Definition | None:
    """Of `name` by two of `values`, or one and a number; None where no number within LIMIT was found."""
    for _ in range(20):
        left, right = rng.sample(list(values), 2)
        operation = rng.choice(OPERATIONS)
        operand: str | int = right
        if operation == 'times':
            operand = rng.randint(2, 3)
        elif rng.random() < 0.3:
            operand = rng.randint(1, 9)
        definition = Definition(name, left, operation, operand)
        if 0 <= definition.value(values) <= LIMIT:
            return definition
    return None


def write_question(rng: random.Random, problem: Problem, held_out: bool = False) -> str:
    """The problem in words, its sentences in any order. held_out: in the phrasings that no training text has."""

    def phrase(templates: tuple[str, ...]) -> str:
        return templates[-1] if held_out else rng.choice(templates[:-1])

    derived = {definition.name for definition in problem.definitions}
    sentences = [GIVEN.format(x=x, n=n) for x, n in problem.values.items() if x not in derived]
    sentences += [DERIVED.format(x=d.name, a=d.left, op=d.operation, b=d.right) for d in problem.definitions]
    rng.shuffle(sentences)
    sentences = [phrase(OPENERS) + sentence for sentence in sentences]
    return ' '.join([*sentences, phrase(ASKED).format(x=problem.target)])


def draw_voice(rng: random.Random) -> Voice:
    """An author: mostly of one phrasing, sometimes of all."""
    weights = [rng.random() ** 3 + 0.02 for _ in STEPS]
    openings = tuple(rng.random() for _ in OPENINGS)
    return Voice(tuple(weights), openings, check=0.5 * rng.random() ** 2, detour=0.3 * rng.random() ** 2)


PLAIN = Voice((1.0, 0.0, 0.0), (1.0, 0.0, 0.0), 0.0, 0.0)  # the standard phrasing
VOICES = {
    'first': PLAIN,
    'second': Voice((0.0, 1.0, 0.0), (1.0, 0.0, 0.0), 0.0, 0.0),
    'third': Voice((0.0, 0.0, 1.0), (1.0, 0.0, 0.0), 0.0, 0.0),
    'checked': Voice((1.0, 0.0, 0.0), (1.0, 0.0, 0.0), 1.0, 0.0),
    'detours': Voice((1.0, 0.0, 0.0), (1.0, 0.0, 0.0), 0.0, 1.0),
    'mixed': Voice((1.0, 1.0, 1.0), (1.0, 1.0, 1.0), 0.3, 0.3),
    'longest': Voice((0.0, 0.0, 1.0), (0.0, 1.0, 0.0), 1.0, 1.0),
}  # by name: what a rewriter may ask for


def write_solution(rng: random.Random, problem: Problem, voice: Voice) -> str:
    """A worked solution in any order that is valid, which ends when the target is known."""
    return write_telling(problem, draw_telling(rng, problem, voice))


def draw_telling(rng: random.Random, problem: Problem, voice: Voice) -> Telling:
    opening = rng.choices(range(len(OPENINGS)), voice.openings)[0]
    return Telling(opening, tuple(_say(rng, one, voice) for one in _order(rng, problem, voice.detour)))


def _say(rng: random.Random, definition: Definition, voice: Voice) -> Said:
    phrasing = rng.choices(range(len(STEPS)), voice.steps)[0]
    return Said(definition, phrasing, definition.operation != 'times' and rng.random() < voice.check)


def _order(rng: random.Random, problem: Problem, detour: float) -> Iterator[Definition]:
    """The needed definitions and now and then another, each after what it needs, the target last."""
    needed = problem.needed
    left = [d for d in problem.definitions if d in needed or rng.random() < detour]
    unknown = {d.name for d in problem.definitions}
    while problem.target in unknown:
        ready = [d for d in left if d.left not in unknown and d.right not in unknown]
        definition = rng.choice([d for d in ready if d.name != problem.target] or ready)
        left.remove(definition)
        unknown.discard(definition.name)
        yield definition


def write_telling(problem: Problem, telling: Telling) -> str:
    opening = OPENINGS[telling.opening].format(x=problem.target)
    lines = [opening, *(line for said in telling.steps for line in _step(problem, said))]
    return '\n'.join([*filter(None, lines), f'#### {problem.values[problem.target]}'])


def _step(problem: Problem, said: Said) -> list[str]:
    definition, n = said.definition, problem.values[said.definition.name]
    right, (i, j) = definition.right, definition.operands(problem.values)
    a, b = f'{definition.left}: {i}', f'{right}: {j}' if isinstance(right, str) else str(j)
    words = {'x': definition.name, 'l': definition.left, 'op': definition.operation, 'r': right}
    lines = [STEPS[said.phrasing].format(**words, a=a, b=b, i=i, j=j, n=n)]
    if said.checked:
        inverse = 'minus' if definition.operation == 'plus' else 'plus'
        lines.append(f'check {n} {inverse} {j} is {i}')
    return lines


def draw_recall(rng: random.Random) -> tuple[str, str]:
    """An easier task: who has how many or how that follows, and all of it again in another order."""
    names = rng.sample(NAMES, rng.randint(4, 10))
    given = {x: str(rng.randint(0, LIMIT)) for x in names[: rng.randint(1, len(names))]}
    derived = {x: _draw_words(rng, names) for x in names if x not in given}
    repeated = [f'{x}: {words}' for x, words in (given | derived).items()]
    said = [f'{line} .' for line in repeated]
    rng.shuffle(said)
    rng.shuffle(repeated)
    return ' '.join([*said, ALL]), '\n'.join(repeated)


def _draw_words(rng: random.Random, names: Sequence[str]) -> str:
    left, right = rng.sample(names, 2)
    return f'{left} {rng.choice(OPERATIONS)} {rng.choice([right, str(rng.randint(1, 9))])}'


def draw_drill(rng: random.Random, sums: int = 8) -> tuple[str, str]:
    """An easier task: sums and their results."""
    drawn = [_draw_sum(rng) for _ in range(sums)]
    question = ' '.join([*(f'{i} {operation} {j} .' for i, operation, j in drawn), ALL])
    return question, '\n'.join(f'{i} {operation} {j} is {apply(operation, i, j)}' for i, operation, j in drawn)


def _draw_sum(rng: random.Random) -> tuple[int, str, int]:
    while True:
        operation = rng.choice(OPERATIONS)
        i, j = rng.randint(0, LIMIT), rng.randint(2, 3) if operation == 'times' else rng.randint(0, LIMIT)
        if 0 <= apply(operation, i, j) <= LIMIT:
            return i, operation, j
