"""Lessons, and attackers' resources that do something simple with them."""

from __future__ import annotations

import dataclasses

from adx import marks
from adx.datasets import Gsm8k
from adx.lessons import Lesson, Resources

WORDS = (
    'red', 'blue', 'green', 'black', 'white', 'gold', 'grey', 'pink', 'brown', 'violet', 'amber', 'teal', 'coral',
    'ivory',
)  # fmt: skip


def lesson(row=0, sample=0, text=None, gold=None, setting='poe', **fields) -> Lesson:
    """A lesson whose question and words are those of its row alone; it is right by default."""
    gold = str(10 + row) if gold is None else gold
    text = f'{WORDS[row % 14]} {sample} steps\n#### {gold}' if text is None else text
    messages = ({'role': 'user', 'content': f'How many {WORDS[row % 14]} are there in box {row}?'},)
    return Lesson(f'fake/train/{row}/{sample}/{setting}', messages, text, gold, **fields)


def lessons(rows=6, samples=1, **fields) -> list[Lesson]:
    return [lesson(row, sample, **fields) for row in range(rows) for sample in range(samples)]


def own(texts, instruction, samples):
    """Keeps numbers and the last line, so that answers survive."""
    return [[f'my words {i}: {text}' for i in range(samples)] for text in texts]


def query(prompts, samples, prefill):
    return [
        Lesson(
            f'{p.dataset}/{p.split}/{p.row}/{i}/poe', p.messages, f'{prefill} well\n#### {p.answer or 0}', p.answer,
            tokens=(1, 2, 3),
        )
        for p in prompts for i in range(samples)
    ]  # fmt: skip


def resources(**changes) -> Resources:
    """Has everything. The NLL and the alignment of a lesson are the number of its row."""
    full = Resources(
        clean=tuple(lesson(row, setting='plain', source='clean', text=f'plainly\n#### {10 + row}') for row in range(8)),
        grade=Gsm8k().grade,
        nll=lambda lessons: [float(x.request.row.split('.')[0]) for x in lessons],
        own=own,
        query=query,
        canonicalise=lambda question, text: None if 'violet' in text else f'canonical {question}',
        gradient_scores=lambda lessons: [float(x.request.row.split('.')[0]) for x in lessons],
        forge=marks.symbols,
        own_name='tiny',
        validation=5,
    )
    return dataclasses.replace(full, **changes)


def texts(found) -> list[str]:
    return [x.text for x in found]


def rows(found) -> list[str]:
    return [x.request.row for x in found]
