"""A language model is told how to rewrite a trace (arXiv 2602.15143, section 3).

The model has the problem before its eyes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from adx.drafts import Draft, Tools
from adx.lessons import check_text, question
from adx.texts import canonical
from adx.types import Trace, check_count

INSTRUCTIONS = {
    'identity': 'Copy the solution below word by word.',
    'paraphrase': (
        'Say the solution below in other words. Keep every step, every number and the final answer, and write the '
        'final answer in the same form.'
    ),
    'condense': (
        'Shorten the solution below: leave out what a reader can do without, keep every calculation and the final '
        'answer, and write the final answer in the same form.'
    ),
    'formalise': (
        'Write the solution below as a formal derivation with symbols for the quantities, one line a step. Keep every '
        'number and the final answer, and write the final answer in the same form.'
    ),
    'reorder': (
        'Write the solution below with its steps in another valid order, each step after those that it needs. Keep '
        'every number and the final answer, and write the final answer in the same form.'
    ),
}
ECHO = 'repeats its instruction'


def told(instruction: str, trace: Trace) -> str:
    """What the rewriting model reads: the instruction, and the solution behind its problem."""
    return f'{instruction}\n\nProblem:\n{question(trace.messages)}\n\nSolution:\n{trace.text}'


def no_echo(instruction: str, draft: Draft) -> Draft:
    """The draft, disowned where it repeats what the model was told."""
    echoes = not draft.problem and canonical(instruction) in canonical(draft.text)
    return Draft(draft.text, ECHO) if echoes else draft


@dataclasses.dataclass(frozen=True)
class Instructed:
    """instruction: one of INSTRUCTIONS by name, or in your own words. tries: how many answers are asked for.

    A name is one word: what has a space is an instruction itself. arm: under whose rule the rewriter is decoded, where
    the teacher rewrites; '' for none.
    """

    instruction: str = 'paraphrase'
    tries: int = 2
    arm: str = ''

    needs = ('write',)

    def check(self) -> None:
        check_text('Instructed.instruction', self.instruction)
        if ' ' not in self.instruction and self.instruction not in INSTRUCTIONS:
            raise ValueError(
                f'Instructed.instruction = {self.instruction!r} is unknown; it must be one of {tuple(INSTRUCTIONS)}, '
                'or words of your own'
            )
        check_count('Instructed.tries', self.tries)

    @property
    def words(self) -> str:
        return INSTRUCTIONS.get(self.instruction, self.instruction)

    def drafts(self, traces: Sequence[Trace], tools: Tools) -> list[list[Draft]]:
        write = tools.need('write', 'instructed')
        asked = [told(self.words, one) for one in traces]
        return [[no_echo(self.words, draft) for draft in drafts] for drafts in write(asked, self.tries, self.arm)]
