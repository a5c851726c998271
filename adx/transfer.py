"""The transfer matrix: does one model's direction predict what traces do to another?

Every model takes one real optimiser step on each group of an arm's traces. The change of its loss on clean holdout
traces is compared by rank, over groups, with what the first derivative of each proxy said of the group: minus the mean
over its tokens of <g, grad NLL>, g the gradient of the proxy's own holdout loss (selection.harm).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from etils import epath

from adx import checkpoints, curves, files, statistics, study_traces
from adx.batching import Corpus, Example, Stream, batches
from adx.errors import InputError, StorageError, malformed
from adx.evaluation import Likelihood
from adx.gradients import Differentiator
from adx.hashing import row_key
from adx.journal import content_to_json, read_content
from adx.lesson_encoding import encode
from adx.lessons import Lesson, from_trace
from adx.loading import load_alone, read_tokenizer
from adx.mesh import make_mesh
from adx.optimising import Recipe
from adx.selection import harms
from adx.statistics import Interval
from adx.storage import Workdir
from adx.study import Student, Study
from adx.training import Trainer

LEAST = 20  # groups
Tell = Callable[[str, int, int], None]


@dataclasses.dataclass(frozen=True)
class Cell:
    """The rank correlation of a proxy's prediction with what one step did to a model, over n groups of traces.

    unread: traces of the groups that one of the two was not taught: too long for it, truncated or not to be spelt.
    """

    arm: str
    predictor: str
    model: str
    rho: Interval
    n: int
    unread: int = 0

    @property
    def text(self) -> str:
        unread = f'without {self.unread} traces that one of the two cannot read' if self.unread else ''
        interval = f'{self.rho.value:.2f} [{self.rho.low:.2f}, {self.rho.high:.2f}]'
        return ', '.join(part for part in (interval, f'{self.n} groups', self.rho.note, unread) if part)


@dataclasses.dataclass(frozen=True)
class Subject:
    """A model with the groups of traces and the clean holdout traces as it reads them."""

    name: str
    loaded: checkpoints.Loaded
    groups: list[list[Example]]
    held: list[Example]

    @property
    def read(self) -> set[str]:
        return {example.id for group in self.groups for example in group}


def transfer(
    study: Study, path: str, arm: str, groups: int = 48, size: int = 8, tell: Tell = lambda name, done, total: None
) -> list[Cell]:
    """The matrix on the first seed, kept in private/report/transfer.json.

    Raises InputError where traces of the arm or of the holdout split are missing or too few.
    """
    cells, place = measure(study, path, study.seeds[0], arm, groups, size, tell), place_of(path)
    with files.os_errors(StorageError, f'{place} was not written'):
        files.make_private_dir(place.parent)
        record = [dataclasses.asdict(cell) | {'rho': list(cell.rho)} for cell in cells]
        files.write_private(place, content_to_json('cells', record))
    return cells


def measure(
    study: Study, path: str, seed: int, arm: str, groups: int, size: int, tell: Tell = lambda name, done, total: None
) -> list[Cell]:
    """The proxies by all models of the study, on traces of one of its seeds; raises as transfer does."""
    if groups < LEAST:
        raise InputError(f'{groups} groups are too few for a correlation with an interval; take at least {LEAST}')
    proxies = [Student(source.source, source) for source in study.experiment.proxies]
    others = [one for one in study.students if one.source not in study.experiment.proxies]
    drawn = _draw(study, path, seed, arm, groups, size)
    subjects = [_subject(study, path, seed, one, drawn) for one in (*proxies, *others)]
    predicted = [(one, predictions(one)) for one in subjects[: len(proxies)]]
    cells = []
    for subject in subjects:
        done = changes(subject, study.recipe, tell)
        for proxy, said in predicted:
            rho = statistics.rank_correlation(said, done)
            unread = groups * size - len(proxy.read & subject.read)
            cells.append(Cell(arm, proxy.name, subject.name, rho, groups, unread))
    return cells


def place_of(path: str) -> epath.Path:
    return Workdir(path).private / 'report' / 'transfer.json'


def read(path: str) -> list[Cell]:
    """The matrix of a study's workdir, empty where none was measured."""
    place, fix = place_of(path), 'delete it and run transfer_matrix again'
    with files.os_errors(StorageError, f'{place} cannot be read'):
        if not files.exists(place):
            return []
    records = read_content(place, 'cells', list, StorageError, fix)
    with malformed(f'{place} holds no correlations', fix, StorageError):
        return [_cell(one) for one in records]


def _cell(record: dict[str, Any]) -> Cell:
    """Raises ValueError, TypeError or LookupError for what is none: the report formats its numbers."""
    value, low, high, note = record['rho']
    return Cell(**record | {'rho': Interval(float(value), float(low), float(high), str(note))})


def _draw(study: Study, path: str, seed: int, arm: str, groups: int, size: int) -> list[list[Lesson]]:
    made = study_traces.read(study, path, seed)
    if arm not in made:
        raise InputError(f'{arm!r} is no arm of the study; it has {sorted(made)}')
    lessons = [from_trace(trace) for trace in study_traces.one_each(made[arm]).values()]
    if len(lessons) < groups * size:
        raise InputError(f'arm {arm!r} has {len(lessons)} prompts and {groups} groups of {size} are wanted; take fewer')
    drawn = sorted(lessons, key=lambda lesson: row_key(seed, lesson.prompt_id).tolist())
    return [drawn[i * size : (i + 1) * size] for i in range(groups)]


def _subject(study: Study, path: str, seed: int, one: Student, drawn: Sequence[Sequence[Lesson]]) -> Subject:
    (loaded, tokenizer), length = load_alone(one.source), study.recipe.length
    teacher, where = read_tokenizer(study.experiment.teacher.source), study_traces.seed_path(path, seed)
    held = curves.holdout_examples(where, tokenizer, one.prompting, length, teacher)
    if not held:
        raise InputError(f'{where} has no clean holdout traces; --stages=prepare makes them for rules with directions')
    groups = [encode(lessons, tokenizer, one.prompting, length, teacher).examples for lessons in drawn]
    return Subject(one.name, loaded, groups, held)


def predictions(proxy: Subject) -> list[float]:
    """Per group the change of the proxy's holdout loss that its first derivative says, for a step of gradient descent
    of size 1: nats a token.
    """
    model, params = proxy.loaded.model, proxy.loaded.params
    taker = Differentiator(model, make_mesh())
    direction, _, _ = taker.mean_gradient(params, (batch for _, batch in batches(proxy.held, taker.rows)))
    found = harms(model, params, direction, [example for group in proxy.groups for example in group])
    return [_token_mean(group, found) for group in proxy.groups]


def _token_mean(group: Sequence[Example], values: dict[str, float]) -> float:
    """Over the tokens of a group, as a step's loss is."""
    tokens = [len(example.completion) for example in group]
    return float(np.average([values[example.id] for example in group], weights=tokens))


def changes(subject: Subject, recipe: Recipe, tell: Tell) -> list[float]:
    """Per group the change of the holdout loss after one step of the recipe's optimiser on it alone: nats a token."""
    rows = max(len(group) for group in subject.groups)
    once = dataclasses.replace(recipe, rows=rows, accumulate=1, warmup=0.0, steps=1, pack=False, lora_rank=0)
    trainer, likelihood = Trainer(subject.loaded.model, make_mesh(), once), Likelihood(subject.loaded.model)
    before = likelihood.mean(subject.loaded.params, subject.held)
    found = []
    for n, group in enumerate(subject.groups):
        state = trainer.start({path: jnp.asarray(x, jnp.float32)[None] for path, x in subject.loaded.params.items()})
        state, _ = trainer.step(state, Stream([Corpus(group)], rows, once.length)(0))
        params = {path: x[0] for path, x in trainer.params(state).items()}
        found.append(likelihood.mean(params, subject.held) - before)
        tell(subject.name, n + 1, len(subject.groups))
    return found
