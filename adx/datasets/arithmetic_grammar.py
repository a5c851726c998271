"""Reads what the arithmetic testbed writes: solves, checks, and puts into standard words.

Shares no code with arithmetic_problems.py, which writes them: what one got wrong the other does not repeat.
"""

from __future__ import annotations

import dataclasses
import operator
import re
from collections.abc import Iterable

_OPERATIONS = {'plus': operator.add, 'minus': operator.sub, 'times': operator.mul}
_OP = '(?P<op>plus|minus|times)'
_SAID = rf'(?P<l>[A-Z]\w*) {_OP} (?P<r>[A-Z]\w*|\d+)'
_A, _B = r'(?P<a>[A-Z]\w*): (?P<i>\d+)', r'(?:(?P<b>[A-Z]\w*): )?(?P<j>\d+)'
_SENTENCE = re.compile(rf'(?:.* )?(?P<x>[A-Z]\w*): (?:(?P<n>\d+)|{_SAID})')
_QUESTION = re.compile(r'.*\bhas (?P<x>[A-Z]\w*) \?')
_STEPS = tuple(
    re.compile(pattern)
    for pattern in (
        rf'(?P<x>\w+): {_SAID} is {_A} (?P<applied>\w+) {_B} so (?P=x): (?P<n>\d+)',
        rf'(?P<x>\w+): {_SAID} or {_A} (?P<applied>\w+) {_B} makes (?P=x): (?P<n>\d+)',
        rf'(?P<x>\w+): {_SAID} with {_A} and {_B} : (?P=i) (?P<applied>\w+) (?P=j) is (?P<n>\d+) so (?P=x): (?P=n)',
    )
)
_CHECK = re.compile(rf'check (?P<i>\d+) {_OP} (?P<j>\d+) is (?P<n>\d+)')
_OPENING = re.compile(r'(?:find|the question is) [A-Z]\w*')
_PLANTED = re.compile(r'we know [A-Z]\w* [A-Z]\w* : \d+')  # of two names that stand for nobody: it computes nothing
_FINAL = re.compile(r'#### (?P<n>\d+)')


@dataclasses.dataclass(frozen=True)
class Question:
    """given: name -> number; derived: name -> (left, operation, right), right a name or a number; target: the name."""

    given: dict[str, int]
    derived: dict[str, tuple[str, str, str]]
    target: str

    def value(self, name: str) -> int:
        """What `name` has. Raises ValueError where the question does not say."""
        return self._value(name, frozenset())

    def _value(self, name: str, above: frozenset[str]) -> int:
        if name.isdigit():
            return int(name)
        if name in self.given:
            return self.given[name]
        if name not in self.derived or name in above:
            raise ValueError(f'the question does not say what {name} has')
        left, op, right = self.derived[name]
        return _OPERATIONS[op](*(self._value(operand, above | {name}) for operand in (left, right)))


@dataclasses.dataclass(frozen=True)
class Step:
    """`name` has `number` because of `left` (i) `op` `right` (j), as a solution states it; right is '' for a number.

    said: the (left, operation, right) that it repeats from the question before it puts numbers in.
    """

    name: str
    said: tuple[str, str, str]
    left: str
    i: int
    op: str
    right: str
    j: int
    number: int

    @property
    def is_true(self) -> bool:
        """As arithmetic, of the operands that it said; whether the question says so too is not looked at."""
        used = self.left, self.op, self.right or str(self.j)
        return self.said == used and _OPERATIONS[self.op](self.i, self.j) == self.number


@dataclasses.dataclass(frozen=True)
class Solution:
    """steps in their order; checks: each 'check' line and whether it is true; other: lines that are in no known words;
    final: the number of the last `####` line, None where there is none."""

    steps: tuple[Step, ...]
    checks: tuple[tuple[str, bool], ...]
    other: tuple[str, ...]
    final: int | None


def read_question(text: str) -> Question:
    """Raises ValueError naming the sentence that is in no known words, or says again what somebody has."""
    *sentences, asked = re.split(r' \. ', text.strip())
    given: dict[str, int] = {}
    derived: dict[str, tuple[str, str, str]] = {}
    for sentence in sentences:
        match = _SENTENCE.fullmatch(sentence)
        if match is None:
            raise ValueError(f'{sentence!r} is no sentence of the arithmetic testbed')
        if match['x'] in given or match['x'] in derived:
            raise ValueError(f'{sentence!r} says again what {match["x"]} has')
        if match['n']:
            given[match['x']] = int(match['n'])
        else:
            derived[match['x']] = (match['l'], match['op'], match['r'])
    match = _QUESTION.fullmatch(asked)
    if match is None:
        raise ValueError(f'{asked!r} is no question of the arithmetic testbed')
    return Question(given, derived, match['x'])


def read_solution(text: str) -> Solution:
    """Any text: lines in no known words are kept in `other`."""
    steps: list[Step] = []
    checks: list[tuple[str, bool]] = []
    other: list[str] = []
    final = None
    for line in filter(None, (line.strip() for line in text.split('\n'))):
        if step := _read_step(line):
            steps.append(step)
        elif match := _CHECK.fullmatch(line):
            result = _OPERATIONS[match['op']](int(match['i']), int(match['j']))
            checks.append((line, result == int(match['n'])))
        elif match := _FINAL.fullmatch(line):
            final = int(match['n'])
        elif not (_OPENING.fullmatch(line) or _PLANTED.fullmatch(line)):
            other.append(line)
    return Solution(tuple(steps), tuple(checks), tuple(other), final)


def statements(text: str) -> list[tuple[str, bool]]:
    """(statement, whether it is true) of every step and check."""
    solution = read_solution(text)
    return [*((_write(step), step.is_true) for step in solution.steps), *solution.checks]


def _read_step(line: str) -> Step | None:
    for pattern in _STEPS:
        if (m := pattern.fullmatch(line)) and m['applied'] in _OPERATIONS:
            said = (m['l'], m['op'], m['r'])
            return Step(m['x'], said, m['a'], int(m['i']), m['applied'], m['b'] or '', int(m['j']), int(m['n']))
    return None


def canonicalise(question: str, text: str) -> str | None:
    """The solution in standard words and order, with the numbers that it states; None where it cannot be read.

    Steps come in the order in which the question names what they find, each after those that it uses; what repeats,
    checks, openings and planted definitions are left out.
    """
    solution = read_solution(text)
    if solution.other or solution.final is None or not solution.steps:
        return None
    try:
        derived = read_question(question).derived
    except ValueError:
        return None
    rank = {name: i for i, name in enumerate(derived)}
    by_name = {step.name: step for step in solution.steps}
    ordered = sorted(by_name.values(), key=lambda step: rank.get(step.name, len(rank)))
    lines = [_write(step) for step in _after_what_they_use(ordered)]
    return '\n'.join([*lines, f'#### {solution.final}'])


def _after_what_they_use(steps: Iterable[Step]) -> list[Step]:
    waiting, done = list(steps), []
    while waiting:
        names = {step.name for step in waiting}
        ready = [s for s in waiting if not {s.left, s.right} & (names - {s.name})]
        done.append((ready or waiting)[0])  # steps that use each other stay in their order
        waiting.remove(done[-1])
    return done


def _write(step: Step) -> str:
    right = f'{step.right}: {step.j}' if step.right else str(step.j)
    numbers = f'{step.left}: {step.i} {step.op} {right}'
    return f'{step.name}: {" ".join(step.said)} is {numbers} so {step.name}: {step.number}'
