"""The families of a study: students before distillation, and what trains and grades them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax

from adx import checkpoints, curves
from adx.answers import reader_of
from adx.datasets.tokenizing import Tokenizer
from adx.decoding.engine import Engine
from adx.evaluation import Exam, make_exam, roomy, student_engine, with_shots
from adx.keeping import Keeping
from adx.lessons import Lesson, finished, shuffled
from adx.loading import load_alone, read_tokenizer
from adx.mesh import Layout, make_mesh, teacher_layout
from adx.models.transformer import Params, TransformerConfig
from adx.study import Student, Study
from adx.teaching import Classroom
from adx.types import Prompt

CHOICE = 'attack_val'
Tell = Callable[[str, int, int], None]  # what is trained, steps done, of how many


@dataclasses.dataclass(frozen=True)
class Lab:
    """What all students of a study share. teacher: its tokenizer; prompts: of the splits that nobody is trained on."""

    study: Study
    path: str
    teacher: Tokenizer
    prompts: dict[str, list[Prompt]]
    tell: Tell
    keeping: Keeping

    @functools.cached_property
    def teacher_model(self) -> checkpoints.Loaded:
        return load_alone(self.study.experiment.teacher, _layout(self.study)).loaded


@dataclasses.dataclass(frozen=True)
class Family:
    """A student as it is before it is distilled, and what it is trained and graded with."""

    student: Student
    params: Params
    identity: str
    tokenizer: Tokenizer
    engine: Engine
    exams: dict[str, Exam]  # by split
    classroom: Classroom
    yardstick: curves.Yardstick | None  # where the study wants curves


def make_lab(study: Study, path: str, tell: Tell, keeping: Keeping = Keeping()) -> Lab:  # noqa: B008
    prompts = {split: study.experiment.dataset.prompts(split) for split in (CHOICE, study.split, 'holdout')}
    return Lab(study, path, read_tokenizer(study.experiment.teacher.source), prompts, tell, keeping)


def make_family(lab: Lab, student: Student) -> Family:
    study, reader = lab.study, reader_of(lab.study.experiment.dataset)
    loaded, tokenizer = load_alone(student.source, _layout(study))
    exams = {
        split: make_exam(
            lab.prompts[split][:count], tokenizer, student.prompting, reader, study.max_new_tokens, study.sampling
        )
        for split, count in ((CHOICE, study.choice), (study.split, study.exam))
    }
    eos = sorted(tokenizer.eos_ids)
    engine = student_engine(loaded.model, loaded.params, _mesh(study), study.experiment.decode, seed=0, eos=eos)
    classroom = Classroom(loaded.model, loaded.params, _mesh(study), study.recipe)
    # Only where the student has its vocabulary can the teacher's distribution be compared.
    teacher = lab.teacher_model if study.curve and tokenizer.tokens == lab.teacher.tokens else None
    yardstick = curves.make_yardstick(teacher, loaded.model) if study.curve else None
    return Family(student, loaded.params, loaded.identity, tokenizer, engine, exams, classroom, yardstick)


def _mesh(study: Study) -> jax.sharding.Mesh:
    shape = study.experiment.mesh
    return make_mesh(shape.data, shape.proxy, shape.model)


def _layout(study: Study) -> Callable[[TransformerConfig], Layout]:
    """Where the weights lie that students begin with: no device, and no process, has to hold all of them."""
    return lambda config: teacher_layout(_mesh(study), config.sizes)


def shown_examples(lab: Lab, family: Family, seed: int, clean: Sequence[Lesson]) -> Family:
    """The family with an exam behind worked examples, finished and right, and an engine that has room for them."""
    study, reader, prompting = lab.study, reader_of(lab.study.experiment.dataset), family.student.prompting
    right = [one for one in finished(clean)[0] if reader.read(one.text, one.gold or '').strict]
    shown = shuffled(right, seed, 'shots', lambda lesson: lesson.id)[: study.shots]
    prompts = with_shots(lab.prompts[study.split][: study.exam], shown)
    exam = make_exam(prompts, family.tokenizer, prompting, reader, study.max_new_tokens, study.sampling)
    config = roomy(study.experiment.decode, exam.requests)
    model, eos = family.engine.ensemble.teacher, sorted(family.tokenizer.eos_ids)
    engine = student_engine(model, family.params, _mesh(study), config, seed=0, eos=eos)
    return dataclasses.replace(family, engine=engine, exams={study.split: exam})
