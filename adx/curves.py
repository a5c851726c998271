"""How a student stood on its way: loss on clean holdout traces, divergence from the teacher."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from adx import checkpoints
from adx.batching import Example
from adx.datasets.chat import Prompting
from adx.datasets.tokenizing import Tokenizer
from adx.directions import holdout_path
from adx.evaluation import Divergence, Likelihood
from adx.lesson_encoding import encode
from adx.lessons import from_trace
from adx.models.transformer import Model, Params
from adx.storage import Workdir

LIMIT = 256  # holdout traces that a student is measured on


def marks(steps: int, count: int) -> tuple[int, ...]:
    """The steps after which a student of so many is measured before its end, evenly spaced; at most `count`."""
    return tuple(sorted({steps * i // (count + 1) for i in range(1, count + 1)} - {0}))


def holdout_examples(
    path: str, student: Tokenizer, prompting: Prompting, length: int, teacher: Tokenizer
) -> list[Example]:
    """The clean holdout traces of a seed's workdir as a student reads them; none where none were decoded."""
    place = Workdir(holdout_path(path))
    lessons = [from_trace(trace, 'clean') for trace in place.traces()] if place.private.exists() else []
    return encode(lessons[:LIMIT], student, prompting, length, teacher).examples if lessons else []


@dataclasses.dataclass(frozen=True)
class Yardstick:
    """What the students of one architecture are measured with. divergence: None where vocabularies differ."""

    likelihood: Likelihood
    divergence: Divergence | None
    teacher: Params | None

    def measure(self, params: Params, examples: Sequence[Example]) -> dict[str, float]:
        """'loss' and, where the vocabulary is the teacher's, 'kl', in nats a token; empty without examples."""
        if not examples:
            return {}
        found = {'loss': self.likelihood.mean(params, examples)}
        if self.divergence is not None and self.teacher is not None:
            found['kl'] = self.divergence.mean(self.teacher, params, examples)
        return found


def make_yardstick(teacher: checkpoints.Loaded | None, student: Model) -> Yardstick:
    """teacher: None where its vocabulary is not the student's."""
    if teacher is None:
        return Yardstick(Likelihood(student), None, None)
    return Yardstick(Likelihood(student), Divergence(teacher.model, student), teacher.params)
