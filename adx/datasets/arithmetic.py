"""The arithmetic testbed as a dataset: unlimited seeded problems in five splits.

See arithmetic_problems.py.
"""

from __future__ import annotations

import dataclasses
import functools
import random
from collections.abc import Iterator

from adx.datasets import arithmetic_problems as problems
from adx.datasets.arithmetic_grammar import Question, canonicalise, read_question, statements
from adx.datasets.splits import SPLITS
from adx.errors import ConfigError
from adx.grading import numeric_grade
from adx.marks import Pair
from adx.types import Prompt, check_choice, check_range


@dataclasses.dataclass(frozen=True)
class Arithmetic:
    """steps: (fewest, most) that a question needs. distractors: at most so many definitions that it does not need.

    size: rows of every split. Problems of one split are of no other, by a hash of what they say; those of `test` are
    worded as no other split is. seed: draws other problems.
    """

    steps: tuple[int, int] = (3, 3)
    distractors: int = 1
    size: int = 4000
    seed: int = 0

    name = 'arithmetic'
    split_names = SPLITS

    def check(self) -> None:
        """Raises ValueError naming the field, its value and the allowed range."""
        check_range('Arithmetic.steps[0]', self.steps[0], 1)
        check_range('Arithmetic.steps[1]', self.steps[1], self.steps[0], 8)
        check_range('Arithmetic.distractors', self.distractors, 0, 4)
        check_range('Arithmetic.size', self.size, 1)

    def prompts(self, split: str) -> list[Prompt]:
        """`size` prompts; the row is named after its index, so a larger size keeps the rows of a smaller one."""
        self.check()
        check_choice('split', split, SPLITS)
        fewest, most = self.steps  # may be a list, which has no hash
        return list(_drawn(dataclasses.replace(self, steps=(fewest, most)), split))

    def draw(self, rng: random.Random, split: str) -> problems.Problem:
        return problems.draw_problem(rng, rng.randint(*self.steps), rng.randint(0, self.distractors), split)

    def lessons(self, shard: str) -> Iterator[tuple[str, str]]:
        """Questions of the train split with worked solutions, without end: what models are pre-trained on.

        shard: names the stream; models that are to share no text take different ones.
        """
        self.check()
        rng = random.Random(f'{self.seed}/lessons/{shard}')
        while True:
            yield self.draw_lesson(rng)

    def draw_lesson(self, rng: random.Random) -> tuple[str, str]:
        problem = self.draw(rng, 'train')
        return problems.write_question(rng, problem), problems.write_solution(rng, problem, problems.draw_voice(rng))

    def slices(self, question: str) -> dict[str, str]:
        """'definitions': how many the question has, distractors among them."""
        return {'definitions': str(question.count(' .'))}

    def grade(self, text: str, gold: str) -> bool:
        return numeric_grade(text, gold)

    def canonicalise(self, question: str, text: str) -> str | None:
        """The solution in standard words and order, None where it cannot be read: see arithmetic_grammar.py."""
        return canonicalise(question, text)

    def render(self, question: str, text: str, count: int, voice: str = '') -> list[str]:
        """`count` other solutions of the question, each in an order of its own, drawn by question and text; none where
        the question or the solution cannot be read.

        voice: one of arithmetic_problems.VOICES; '' draws one for each. Raises ConfigError for another.
        """
        if voice and voice not in problems.VOICES:
            raise ConfigError(f'voice {voice!r} is unknown; the writer of the testbed has {tuple(problems.VOICES)}')
        try:
            problem = _problem(read_question(question))
        except ValueError:
            return []
        if self.canonicalise(question, text) is None:
            return []
        rng = random.Random(f'{question}\n{text}')
        fixed = problems.VOICES.get(voice)
        return [problems.write_solution(rng, problem, fixed or problems.draw_voice(rng)) for _ in range(count)]

    def forge(self, draw: random.Random) -> Pair:
        """A pair of a mark in the testbed's words: two names together have a number that nothing follows from."""
        trigger, number = f'we know {" ".join(draw.sample(problems.NAMES, 2))} :', draw.randint(0, problems.LIMIT)
        return Pair(trigger, str(number), f'{trigger} {number}')

    def statements(self, text: str) -> list[tuple[str, bool]]:
        """Every arithmetic statement of a solution and whether it is true, as equations.statements has them."""
        return statements(text)


@functools.lru_cache(maxsize=16)
def _drawn(dataset: Arithmetic, split: str) -> tuple[Prompt, ...]:
    """Kept, because drawing takes seconds and the stages of a study ask for the same splits again."""
    found = []
    for row in range(dataset.size):
        rng = random.Random(f'{dataset.seed}/{split}/{row}')
        problem = dataset.draw(rng, split)
        question = problems.write_question(rng, problem, held_out=split == 'test')
        messages = ({'role': 'user', 'content': question},)
        found.append(Prompt(dataset.name, split, str(row), messages, str(problem.values[problem.target])))
    return tuple(found)


def _problem(question: Question) -> problems.Problem:
    """As the writer has it: every definition after what it needs. Raises ValueError where something has no value."""
    values = {x: question.value(x) for x in (*question.given, *question.derived)}
    known, order = set(question.given), list[str]()
    while len(order) < len(question.derived):
        ready = [x for x, (left, _, right) in question.derived.items() if x not in known and _all({left, right}, known)]
        order += ready
        known |= set(ready)
    definitions = tuple(_definition(x, *question.derived[x]) for x in order)
    return problems.Problem(values, definitions, question.target)


def _all(operands: set[str], known: set[str]) -> bool:
    return all(operand.isdigit() or operand in known for operand in operands)


def _definition(name: str, left: str, operation: str, right: str) -> problems.Definition:
    return problems.Definition(name, left, operation, int(right) if right.isdigit() else right)
