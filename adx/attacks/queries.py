"""Queries: what the teacher is asked, with which first words and from how many accounts."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence

from adx.attacks.rewrites import solved
from adx.hashing import row_key
from adx.lessons import (
    Lesson,
    Passive,
    Resources,
    Tally,
    by_prompt,
    check_text,
    prompts_of,
    question,
    sort_out,
)
from adx.texts import canonical
from adx.types import Prompt, check_choice, check_range

INSTRUCTIONS = {
    'paraphrase': 'Ask the question below in other words, with the same numbers and the same answer.',
    'evolve': 'Make the question below harder: add a condition or a step, so that it still has one definite answer.',
    'self_made': 'Make up a new question of the kind below, about something else, with one definite answer.',
}
UNANSWERED = 'the teacher did not answer'


@dataclasses.dataclass(frozen=True)
class Prefill(Passive):
    """Asks the teacher again, its answer begun with `text`, '' for freely; of the lessons given nothing is read but the
    prompts.

    samples: >= 1, per prompt. own_only: None, all it has is the teacher's.
    """

    text: str = 'Okay'
    samples: int = 1

    needs = ('query',)
    asks_anew = True
    asks_teacher = True

    def check(self) -> None:
        if self.text:
            check_text('Prefill.text', self.text)
        check_range('Prefill.samples', self.samples, 1)

    def apply(self, lessons: Sequence[Lesson], resources: Resources) -> tuple[list[Lesson], Tally]:
        resources.need('query', 'prefill')
        prompts = prompts_of(lessons, resources.prompts)
        answers, unanswered = _ask(resources, prompts, self.samples, self.text)
        dropped = {'asked again': len(lessons)} if lessons else {}
        added = {'prefilled': len(answers)} if answers else {}
        return answers, Tally('prefill', len(lessons), dropped, added, refused=unanswered)


@dataclasses.dataclass(frozen=True)
class AugmentQueries(Passive):
    """The attacker's own model makes new prompts out of the given ones, and the teacher answers them too.

    how: one of INSTRUCTIONS; instruction: other words for it. count: >= 1, new prompts for each; samples: >= 1, per new
    prompt.
    A paraphrase keeps the gold answer of its prompt, the others have none. What asks nothing, or what was asked
    before, is refused. own_only: what the own model itself writes to the old and the new prompts.
    """

    how: str = 'paraphrase'
    count: int = 1
    samples: int = 1
    instruction: str = ''

    needs = ('own', 'query')
    asks_teacher = True

    def check(self) -> None:
        check_choice('AugmentQueries.how', self.how, tuple(INSTRUCTIONS))
        check_range('AugmentQueries.count', self.count, 1)
        check_range('AugmentQueries.samples', self.samples, 1)

    def apply(self, lessons: Sequence[Lesson], resources: Resources) -> tuple[list[Lesson], Tally]:
        for name in self.needs:
            resources.need(name, 'augment_queries')
        made, refused = self.make(resources, prompts_of(lessons, resources.prompts))
        answers, unanswered = _ask(resources, made, self.samples, '')
        added = {self.how: len(answers)} if answers else {}
        tally = Tally('augment_queries', len(lessons), added=added, refused={**refused, **unanswered})
        return [*lessons, *answers], tally

    def own_only(self, resources: Resources, prompts: Sequence[Prompt]) -> list[Lesson] | None:
        made, _ = self.make(resources, prompts)
        return solved(resources, [*prompts, *made], 'augment_queries')

    def make(self, resources: Resources, prompts: Sequence[Prompt]) -> tuple[list[Prompt], dict[str, int]]:
        """The new prompts, and what was refused: reason -> count. Rows are named after the row they come from."""
        own, asked = resources.need('own', 'augment_queries'), [question(prompt.messages) for prompt in prompts]
        written = own(asked, self.instruction or INSTRUCTIONS[self.how], self.count) if prompts else []
        known, made = {canonical(text) for text in asked}, []
        refused: Counter[str] = Counter()
        for prompt, texts in zip(prompts, written, strict=True):
            for i, text in enumerate(texts):
                if not text.strip() or canonical(text) in known:
                    refused['asked before' if text.strip() else 'asks nothing'] += 1
                    continue
                known.add(canonical(text))
                made.append(self._changed(prompt, text.strip(), i))
        return made, dict(sorted(refused.items()))

    def _changed(self, prompt: Prompt, text: str, i: int) -> Prompt:
        last = max((j for j, m in enumerate(prompt.messages) if m['role'] == 'user'), default=-1)
        if last < 0:
            messages: tuple[dict[str, str], ...] = ({'role': 'user', 'content': text},)
        else:
            messages = (*prompt.messages[:last], {'role': 'user', 'content': text}, *prompt.messages[last + 1 :])
        answer = prompt.answer if self.how == 'paraphrase' else None
        return dataclasses.replace(prompt, row=f'{prompt.row}.{self.how}.{i}', messages=messages, answer=answer)


def _ask(
    resources: Resources, prompts: Sequence[Prompt], samples: int, prefill: str
) -> tuple[list[Lesson], dict[str, int]]:
    """What the teacher answers, and how many of prompts times samples are missing, by reason.

    Raises ValueError for answers to what was not asked.
    """
    query = resources.need('query', 'the attack')
    answers = list(query(prompts, samples, prefill)) if prompts else []
    asked = {prompt.id for prompt in prompts}
    strange = [lesson.id for lesson in answers if lesson.prompt_id not in asked]
    if strange:
        raise ValueError(f'resources.query answered {strange[0]}, which is none of the {len(asked)} prompts asked')
    missing = len(prompts) * samples - len(answers)
    return answers, {UNANSWERED: missing} if missing > 0 else {}


@dataclasses.dataclass(frozen=True)
class Accounts(Passive):
    """The queries are spread over several accounts, each prompt to one of them, and the answers merged.

    count: >= 2, of the accounts, the first by name.
    Where a prompt was answered to several, one is drawn by seed and prompt.
    A teacher that knows no accounts answers all alike, so its lessons are dealt out. own_only: None, an account makes
    no lessons.
    """

    count: int = 2

    asks_teacher = True

    def check(self) -> None:
        check_range('Accounts.count', self.count, 2)

    def apply(self, lessons: Sequence[Lesson], resources: Resources) -> tuple[list[Lesson], Tally]:
        """Raises ValueError where the lessons come from fewer accounts."""
        names = sorted({lesson.account for lesson in lessons})
        if names in ([], ['']):
            deal = [f'account_{i}' for i in range(self.count)]
            dealt = {x.id: dataclasses.replace(x, account=self._draw(x, deal, resources)) for x in lessons}
            return sort_out('accounts', lessons, lambda lesson: dealt[lesson.id], 'dealt out')
        if len(names) < self.count or '' in names:
            raise ValueError(
                f'Accounts.count = {self.count} and the lessons were served to {names}; have that many accounts served'
            )
        held = names[: self.count]
        served = {id_: sorted({x.account for x in group}) for id_, group in by_prompt(lessons).items()}

        def judge(lesson: Lesson) -> Lesson | str:
            mine = [name for name in served[lesson.prompt_id] if name in held]
            if lesson.account not in mine:
                return 'of no account that is held'
            return lesson if lesson.account == self._draw(lesson, mine, resources) else 'asked by another account'

        return sort_out('accounts', lessons, judge)

    def _draw(self, lesson: Lesson, names: Sequence[str], resources: Resources) -> str:
        return names[int(row_key(resources.seed, f'accounts/{lesson.prompt_id}')[0]) % len(names)]
