"""A language model is told how to rewrite a trace (arXiv 2602.15143, section 3).

The model has the problem before its eyes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from adx.drafts import Draft, Frame, Tools
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


def written(
    who: str, orders: Sequence[str], traces: Sequence[Trace], tools: Tools, tries: int, arm: str
) -> list[list[Draft]]:
    """What the rewriting model makes of each trace that it is told an order about: answers in place of the reasoning,
    inside the trace's own thinking tags.
    """
    write, frames = tools.need('write', who), [tools.frame(one) for one in traces]
    asked = [
        told(order, question(one.messages), frame.shown)
        for order, one, frame in zip(orders, traces, frames, strict=True)
    ]
    return [
        [_dressed(order, draft, frame) for draft in drafts]
        for order, frame, drafts in zip(orders, frames, write(asked, tries, arm), strict=True)
    ]


def told(order: str, problem: str, solution: str) -> str:
    """What the rewriting model reads."""
    return f'{order}\n\nProblem:\n{problem}\n\nSolution:\n{solution}'


def _dressed(order: str, draft: Draft, frame: Frame) -> Draft:
    """The draft as a whole text, disowned where it repeats what the model was told."""
    if draft.problem or not draft.text.strip():
        return draft
    return Draft(frame.around(draft.text), ECHO if canonical(order) in canonical(draft.text) else '')


@dataclasses.dataclass(frozen=True)
class Instructed:
    """instruction: one of INSTRUCTIONS by name, or in your own words. tries: >= 1, how many answers are asked for.

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
        return written('instructed', [self.words] * len(traces), traces, tools, self.tries, self.arm)
