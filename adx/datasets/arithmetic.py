"""The arithmetic testbed as a dataset: unlimited seeded problems in five splits, see arithmetic_problems.py."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator

from adx.datasets import arithmetic_problems as problems
from adx.datasets.arithmetic_grammar import canonicalise, statements
from adx.datasets.splits import SPLITS
from adx.grading import numeric_grade
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
        found = []
        for row in range(self.size):
            rng = random.Random(f'{self.seed}/{split}/{row}')
            problem = self.draw(rng, split)
            question = problems.write_question(rng, problem, held_out=split == 'test')
            messages = ({'role': 'user', 'content': question},)
            found.append(Prompt(self.name, split, str(row), messages, str(problem.values[problem.target])))
        return found

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

    def statements(self, text: str) -> list[tuple[str, bool]]:
        """Every arithmetic statement of a solution and whether it is true, as equations.statements has them."""
        return statements(text)
