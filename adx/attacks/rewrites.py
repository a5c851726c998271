"""Rewrites: the same lesson in other words, which a defence of words may not survive."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from adx import grading
from adx.lessons import UNPARSABLE, Lesson, Own, Passive, Resources, Tally, check_text, sort_out, stated
from adx.types import Prompt, RequestId, check_choice

PARAPHRASE = (
    'Rewrite the solution below in your own words. Keep every step and every number, and end with the same final '
    'answer in the same form.'
)
SOLVE = 'Solve the problem below step by step and end with the final answer.'
RECONSTRUCT = (
    'Below are a problem and its answer. Write out the steps that lead to this answer, and end with it as the final '
    'answer.'
)
ANSWERS = ('stated', 'gold')
CHANGED = 'states another answer'


@dataclasses.dataclass(frozen=True)
class Paraphrase(Passive):
    """The attacker's own model says every trace in its own words.

    keeps_answer: drops what then states another final answer than the trace did.
    own_only: what the own model writes to the prompts without having seen a trace.
    """

    instruction: str = PARAPHRASE
    keeps_answer: bool = True

    needs = ('own',)

    def check(self) -> None:
        check_text('Paraphrase.instruction', self.instruction)

    def apply(self, lessons: Sequence[Lesson], resources: Resources) -> tuple[list[Lesson], Tally]:
        own = resources.need('own', 'paraphrase')
        texts = [lesson.text for lesson in lessons]
        written = write(own, texts, self.instruction)
        return _accept('paraphrase', lessons, written, [stated(x) if self.keeps_answer else None for x in lessons])

    def own_only(self, resources: Resources, prompts: Sequence[Prompt]) -> list[Lesson] | None:
        return solved(resources, prompts, 'paraphrase')


@dataclasses.dataclass(frozen=True)
class Canonicalise(Passive):
    """Every trace in the standard phrasing and order of the testbed's grammar: the most that a paraphrase can undo.

    What does not parse is dropped and counted as destroyed: an honest reader has no use for it either.
    own_only: None, a grammar makes no lessons.
    """

    needs = ('canonicalise',)

    def apply(self, lessons: Sequence[Lesson], resources: Resources) -> tuple[list[Lesson], Tally]:
        render = resources.need('canonicalise', 'canonicalise')

        def judge(lesson: Lesson) -> Lesson | str:
            text = render(lesson.question, lesson.text)
            return 'does not parse' if text is None else lesson.rewritten(text)

        return sort_out('canonicalise', lessons, judge, destroyed='does not parse')


@dataclasses.dataclass(frozen=True)
class AnswerOnly(Passive):
    """Nothing of a trace but the lines at its end that state the final answer, as they were served.

    What states none is dropped. own_only: None, the answers are the teacher's.
    """

    def apply(self, lessons: Sequence[Lesson], resources: Resources) -> tuple[list[Lesson], Tally]:
        def judge(lesson: Lesson) -> Lesson | str:
            text = last_lines(lesson)
            return UNPARSABLE if text is None else lesson.rewritten(text)

        return sort_out('answer_only', lessons, judge)


def last_lines(lesson: Lesson) -> str | None:
    """The shortest run of lines at the end from which the lesson's answer is read; None where it states none."""
    answer, lines = stated(lesson), lesson.text.splitlines(keepends=True)
    tails = (''.join(lines[i:]) for i in reversed(range(len(lines))))
    return next((x for x in tails if answer and stated(dataclasses.replace(lesson, text=x)) == answer), None)


@dataclasses.dataclass(frozen=True)
class Reconstruct(Passive):
    """The attacker's own model writes the trace anew from question and answer; no step of the teacher's is left.

    answer: 'stated' by the trace, or 'gold', which the attacker then has to know. A new trace that states another
    answer is dropped. own_only: the same from question and gold answer, where the prompts have one.
    """

    answer: str = 'stated'
    instruction: str = RECONSTRUCT

    own_reads_gold = True

    @property
    def needs(self) -> tuple[str, ...]:  # type: ignore[override]
        return ('own', 'grade') if self.answer == 'gold' else ('own',)

    def check(self) -> None:
        check_choice('Reconstruct.answer', self.answer, ANSWERS)
        check_text('Reconstruct.instruction', self.instruction)

    def apply(self, lessons: Sequence[Lesson], resources: Resources) -> tuple[list[Lesson], Tally]:
        if self.answer == 'gold':
            resources.need('grade', 'reconstruct')
        answers = [lesson.gold if self.answer == 'gold' else stated(lesson) for lesson in lessons]
        return self._write(lessons, answers, resources.need('own', 'reconstruct'))

    def own_only(self, resources: Resources, prompts: Sequence[Prompt]) -> list[Lesson] | None:
        own, known = resources.need('own', 'reconstruct'), [p for p in prompts if p.answer is not None]
        return self._write([_own(prompt, '') for prompt in known], [p.answer for p in known], own)[0] or None

    def _write(self, lessons: Sequence[Lesson], answers: Sequence[str | None], own: Own) -> tuple[list[Lesson], Tally]:
        asked = [i for i, answer in enumerate(answers) if answer is not None]
        texts = [answered(lessons[i].question, answers[i] or '') for i in asked]
        found = dict(zip(asked, write(own, texts, self.instruction), strict=True))
        return _accept('reconstruct', lessons, [found.get(i) for i in range(len(lessons))], answers)


def answered(problem: str, answer: str) -> str:
    """What the own model sees of a problem whose solution it is to find."""
    return f'{problem}\n\nAnswer: {answer}'


def solved(resources: Resources, prompts: Sequence[Prompt], who: str, samples: int = 1) -> list[Lesson] | None:
    """What the attacker's own model writes to the prompts on its own; empty texts are left out."""
    own = resources.need('own', who)
    texts = own([_own(prompt, '').question for prompt in prompts], SOLVE, samples) if prompts else []
    pairs = zip(prompts, texts, strict=True)
    found = [_own(prompt, text, i) for prompt, drawn in pairs for i, text in enumerate(drawn) if text.strip()]
    return found or None


def _own(prompt: Prompt, text: str, sample: int = 0) -> Lesson:
    id_ = RequestId(prompt.dataset, prompt.split, prompt.row, sample, 'own')
    return Lesson(str(id_), prompt.messages, text, prompt.answer, source='own')


def write(own, texts: Sequence[str], instruction: str) -> list[str]:
    """One text of the own model to each; '' where it wrote nothing."""
    found = own(texts, instruction, 1) if texts else []
    return [drawn[0] if drawn else '' for _, drawn in zip(texts, found, strict=True)]


def _accept(
    step: str, lessons: Sequence[Lesson], written: Sequence[str | None], answers: Sequence[str | None]
) -> tuple[list[Lesson], Tally]:
    """The lessons with what was written to them. A text of None: there was no answer to write it from; an answer of
    None: any will do."""
    by_id = {lesson.id: pair for lesson, *pair in zip(lessons, written, answers, strict=True)}

    def judge(lesson: Lesson) -> Lesson | str:
        text, answer = by_id[lesson.id]
        if text is None:
            return UNPARSABLE
        if not text.strip():
            return 'nothing was written'
        found = stated(dataclasses.replace(lesson, text=text))
        if answer is not None and (found is None or not grading.same_answer(found, answer)):
            return CHANGED
        return dataclasses.replace(lesson.rewritten(text), stop='eos')

    return sort_out(step, lessons, judge)
