"""The stage `distil`: trains students on the traces of every arm under every attack, and grades them.

    private/study.json        which study this is
    private/seeds/<seed>/     a workdir of its own: the traces of one seed
    private/outcomes/         journals of adx.outcomes.Outcome, one line a graded student

Every family, attack and arm has the whole grid of optimiser settings on the first seed, graded on attack_val; the best
is frozen for the other seeds, which are graded on the study's split only.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from adx import attacks, checkpoints, losses, outcomes_io, readings, training
from adx.answers import reader_of
from adx.attacks import Attack
from adx.batching import Corpus, Rows, Stream
from adx.datasets.tokenizing import Tokenizer, load_tokenizer
from adx.decoding.engine import Engine
from adx.errors import InputError
from adx.evaluation import Evaluation, Exam, evaluate, make_exam, student_engine
from adx.hashing import content_hash
from adx.lesson_encoding import Encoded, encode
from adx.lessons import Lesson, Resources, check_apart, from_trace
from adx.loading import resolve
from adx.mesh import make_mesh
from adx.models.transformer import Model, Params
from adx.outcomes import Outcome, ThreatModel
from adx.outcomes_io import Known, Log
from adx.storage import Workdir
from adx.study import Student, Study, identity, study_hash
from adx.types import Prompt, RequestId

CHOICE = 'attack_val'
OWN, BASE = 'own', 'base'  # sources that are no arm's
Setting = dict[str, Any]
Tell = Callable[[str, int, int], None]  # what is trained, steps done, of how many


@dataclasses.dataclass(frozen=True)
class Lab:
    """What all students of a study share. teacher: its tokenizer; held_apart: prompts that nobody is trained on."""

    study: Study
    path: str
    teacher: Tokenizer
    held_apart: tuple[Prompt, ...]
    tell: Tell


@dataclasses.dataclass(frozen=True)
class Family:
    """A student as it is before it is distilled, and what it is graded with."""

    student: Student
    model: Model
    params: Params
    identity: str
    tokenizer: Tokenizer
    engine: Engine
    exams: dict[str, Exam]  # by split


@dataclasses.dataclass(frozen=True)
class Cell:
    """The lessons of one attack on one source, as one family reads them; encoded is None where there are none."""

    attack: Attack
    arm: str
    source: str
    prepared: attacks.Prepared | None
    encoded: Encoded | None


def seed_path(path: str, seed: int) -> str:
    return f'{path}/private/seeds/{seed}'


def distil(
    study: Study,
    path: str,
    tell: Tell = lambda name, done, total: None,
    guard: Callable[[], Any] = contextlib.nullcontext,
) -> list[Outcome]:
    """Trains and grades what is missing, and returns all outcomes. The traces of every seed must be there.

    Stopped at any moment outside `guard` it goes on with the group of students that it was at.
    """
    outcomes_io.claim(path, identity(study))
    with outcomes_io.open_log(path, guard) as log:
        lab = _lab(study, path, tell)
        families = [_family(study, student) for student in study.students]
        for seed in study.seeds:
            arms = _lessons(study, path, seed)
            for family in families:
                _grade_base(lab, family, seed, log)
                for attack in study.attacks:
                    _Group(lab, family, attack, seed).run(arms, log)
        return [log.known[name] for name in sorted(log.known)]


def _lab(study: Study, path: str, tell: Tell) -> Lab:
    prompts = study.experiment.dataset.prompts
    held_apart = tuple(prompt for split in (CHOICE, study.split, 'holdout') for prompt in prompts(split))
    return Lab(study, path, load_tokenizer(resolve(study.experiment.teacher.source)), held_apart, tell)


def _family(study: Study, student: Student) -> Family:
    source = resolve(student.source.source)
    loaded = checkpoints.load(source, num_layers=student.source.exit_layer or None)
    tokenizer, dataset, mesh = load_tokenizer(source), study.experiment.dataset, _mesh(study)
    exams = {}
    for split, count in ((CHOICE, study.choice), (study.split, study.exam)):
        prompts, reader = dataset.prompts(split)[:count], reader_of(dataset)
        exams[split] = make_exam(prompts, tokenizer, student.prompting, reader, study.max_new_tokens, study.sampling)
    eos = sorted(tokenizer.eos_ids)
    engine = student_engine(loaded.model, loaded.params, mesh, study.experiment.decode, seed=0, eos=eos)
    return Family(student, loaded.model, loaded.params, loaded.identity, tokenizer, engine, exams)


def _mesh(study: Study) -> jax.sharding.Mesh:
    shape = study.experiment.mesh
    return make_mesh(shape.data, shape.proxy, shape.model)


def _lessons(study: Study, path: str, seed: int) -> dict[str, list[Lesson]]:
    """Arm -> the traces of one seed. Raises InputError where some are missing."""
    workdir = Workdir(seed_path(path, seed))
    found: dict[str, list[Lesson]] = {arm.name: [] for arm in study.experiment.arms}
    for trace in workdir.traces():
        arm = RequestId.parse(trace.request_id).setting
        found[arm].append(from_trace(trace, 'clean' if arm == study.clean else 'defended', knows_gold=True))
    totals = workdir.totals() or {}
    for arm, lessons in found.items():
        rejected = sum(RequestId.parse(id_).setting == arm for id_ in workdir.rejected())
        if not lessons or len(lessons) + rejected < totals.get(arm, 0):
            raise InputError(
                f'seed {seed} has {len(lessons)} of {totals.get(arm, "its")} traces of arm {arm!r}; finish them first'
            )
    return found


def _grade_base(lab: Lab, family: Family, seed: int, log: Log) -> None:
    """The student that was not distilled, by the first attack's name, once a seed: seeds pair it with the others."""
    study = lab.study
    settled = _Settled(family.student.name, study.attacks[0].name, '', BASE, seed)
    if outcomes_io.name(settled, {}, study.split) not in log.known:
        threat = ThreatModel(0, 0, 0, 0, family.student.name, 0, 0)
        graded = _graded(lab, family, {'': family.params}, study.split)['']
        log.add([settled.outcome(study, family, {}, study.split, graded, threat)])


@dataclasses.dataclass(frozen=True)
class _Settled:
    """What names an outcome beside its setting and split."""

    student: str
    attack: str
    arm: str
    source: str
    seed: int

    def outcome(
        self, study: Study, family: Family, setting: Setting, split: str, graded: Evaluation, threat: ThreatModel
    ) -> Outcome:
        return Outcome(
            arm=self.arm, role=study.role(self.arm), attack=self.attack, source=self.source, student=self.student,
            seen=family.student.seen, seed=self.seed, setting=setting, split=split, prompts=graded.prompts,
            correct=graded.correct, rates=graded.rates, threat=threat,
            identity={'study': study_hash(study), 'student': family.identity},
        )  # fmt: skip


def _graded(lab: Lab, family: Family, students: Mapping[str, Params], split: str) -> dict[str, Evaluation]:
    if split == 'test':
        readings.read_test(lab.path, study_hash(lab.study), ', '.join(students))
    return dict(evaluate(family.engine, students, family.exams[split]))


class _Group:
    """The students of one seed, family and attack, which are trained together."""

    def __init__(self, lab: Lab, family: Family, attack: Attack, seed: int):
        self.lab, self.study, self.family, self.attack, self.seed = lab, lab.study, family, attack, seed
        self.tell = functools.partial(lab.tell, f'seed {seed}, {family.student.name}, {attack.name}')
        self.first = seed == lab.study.seeds[0]

    def run(self, arms: Mapping[str, Sequence[Lesson]], log: Log) -> None:
        """Trains what is missing and notes its outcomes, all at once: a group is done or it is not."""
        missing = [name for name in (*arms, OWN) if not self._is_done(name, log.known)]
        if not missing:
            return
        cells = {name: self._cell(name, arms) for name in missing}
        jobs = [
            (name, setting)
            for name, cell in cells.items()
            if cell.encoded is not None
            for setting in (self.study.settings if self.first else [self._frozen(name, log.known)])
        ]
        students, diverged, seconds = self._train(cells, jobs) if jobs else ({}, {}, 0.0)
        found = []
        for name, cell in cells.items():
            if cell.encoded is None:
                found += self._untrained(name, log.known)
                continue
            trained = {i: params for i, params in students.items() if jobs[int(i)][0] == name}
            found += self._grade(cell, trained, [job[1] for job in jobs], diverged, seconds / len(jobs))
        log.add(found)

    def _untrained(self, name: str, known: Known) -> list[Outcome]:
        """Without resources of its own an attacker keeps the student as it was. An arm without lessons has none."""
        if name != OWN:
            return []
        base = dataclasses.replace(self._settled(name), attack=self.study.attacks[0].name, source=BASE)
        found = known[outcomes_io.name(base, {}, self.study.split)]
        return [dataclasses.replace(found, attack=self.attack.name, source=OWN)]

    def _settled(self, name: str) -> _Settled:
        source = OWN if name == OWN else 'clean' if name == self.study.clean else 'defended'
        return _Settled(self.family.student.name, self.attack.name, '' if name == OWN else name, source, self.seed)

    def _is_done(self, name: str, known: Known) -> bool:
        of = self._settled(name)
        settings = [*self.study.settings, {}]
        return any(outcomes_io.name(of, setting, self.study.split) in known for setting in settings)

    def _frozen(self, name: str, known: Known) -> Setting:
        """The setting that the first seed chose; the first of all where it had no lessons."""
        of = dataclasses.replace(self._settled(name), seed=self.study.seeds[0])
        chosen = [s for s in self.study.settings if outcomes_io.name(of, s, self.study.split) in known]
        return chosen[0] if chosen else self.study.settings[0]

    def _cell(self, name: str, arms: Mapping[str, Sequence[Lesson]]) -> Cell:
        study, of = self.study, self._settled(name)
        dataset, prompts = study.experiment.dataset, self._sent(arms)
        resources = Resources(
            clean=tuple(arms[study.clean]), grade=dataset.grade, canonicalise=getattr(dataset, 'canonicalise', None),
            seed=self.seed, prompts=prompts,
        )  # fmt: skip
        if name == OWN:
            prepared = self.attack.own_only(prompts, resources)
        else:
            prepared = self.attack.prepare(arms[name], resources)
        if prepared is None or not prepared.lessons:
            return Cell(self.attack, of.arm, of.source, prepared, None)
        check_apart(prepared.lessons, self.lab.held_apart)
        tokenizer, prompting = self.family.tokenizer, self.family.student.prompting
        encoded = encode(prepared.lessons, tokenizer, prompting, study.recipe.length, self.lab.teacher)
        return Cell(self.attack, of.arm, of.source, prepared, encoded)

    def _sent(self, arms: Mapping[str, Sequence[Lesson]]) -> tuple[Prompt, ...]:
        return tuple({lesson.prompt_id: lesson.prompt for lesson in arms[self.study.clean]}.values())

    def _train(
        self, cells: Mapping[str, Cell], jobs: Sequence[tuple[str, Setting]]
    ) -> tuple[dict[str, Params], dict[str, bool], float]:
        """Index of the job -> weights, and whether it diverged; and the seconds of all together."""
        study, family, began = self.study, self.family, time.monotonic()
        recipe = study.recipe
        trainer = training.Trainer(family.model, _mesh(study), recipe, len(jobs), _loss(self.attack))
        corpora = [_corpus(self.attack, cells[name], self.seed) for name, _ in jobs]
        stream = Stream(corpora, recipe.rows, recipe.length, recipe.pack)
        steps = [max(1, round(setting['steps'] * self.attack.longer)) for _, setting in jobs]
        rates = [setting['learning_rate'] for _, setting in jobs]
        stacked = {path: jnp.stack([x.astype(jnp.float32)] * len(jobs)) for path, x in family.params.items()}
        state = trainer.start(stacked, rates, steps, [self.seed] * len(jobs))
        for step in range(max(steps)):
            state, _ = trainer.step(state, stream(step))
            self.tell(step + 1, max(steps))
        trained = trainer.params(state)
        students = {str(i): {path: x[i] for path, x in trained.items()} for i in range(len(jobs))}
        diverged = {str(i): bool(n) for i, n in enumerate(state.diverged_N)}
        return students, diverged, time.monotonic() - began

    def _grade(
        self,
        cell: Cell,
        students: Mapping[str, Params],
        settings: Sequence[Setting],
        diverged: Mapping[str, bool],
        seconds: float,
    ) -> list[Outcome]:
        """On the first seed all on attack_val, then the best of them on the study's split."""
        study, family = self.study, self.family
        of = self._settled(cell.arm or OWN)
        found = []

        def note(i: str, split: str, graded: Evaluation) -> None:
            setting = settings[int(i)]
            one = of.outcome(study, family, setting, split, graded, self._threat(cell, setting))
            found.append(dataclasses.replace(one, diverged=diverged[i], seconds=seconds))

        best = next(iter(students))
        if self.first:
            choice = _graded(self.lab, family, students, CHOICE)
            for i, graded in choice.items():
                note(i, CHOICE, graded)
            best = max(choice, key=lambda i: choice[i].accuracy)
        note(best, study.split, _graded(self.lab, family, {best: students[best]}, study.split)[best])
        return found

    def _threat(self, cell: Cell, setting: Setting) -> ThreatModel:
        assert cell.prepared is not None
        assert cell.encoded is not None
        steps = max(1, round(setting['steps'] * self.attack.longer))
        told = attacks.Training(self.family.student.name, steps, len(self.study.settings), cell.encoded.tokens)
        return self.attack.threat(cell.prepared, told)


def _corpus(attack: Attack, cell: Cell, seed: int) -> Corpus:
    encoded = cell.encoded
    assert encoded is not None
    extras = encoded.soft_labels() if attack.loss == 'soft' else {}
    order = int(content_hash(['order', seed])[:8], 16)
    return Corpus(encoded.examples, order, encoded.weights, extras)


def _loss(attack: Attack) -> training.Loss:
    if attack.loss == 'hard':
        return training.hard_loss
    temperature = dict(attack.arguments).get('temperature', 1.0)

    def soft(model: Model, params: Params, rows: Rows) -> tuple[Any, Any]:
        labels = rows.extras['ids'], rows.extras['log_probs']
        losses_BL = losses.soft_losses(training.logits(model, params, rows), *labels, rows.targets_BL, temperature)
        return jnp.sum(losses_BL * losses.ahead(rows.weights_BL)), jnp.sum(losses.predicting(rows.targets_BL))

    return soft
