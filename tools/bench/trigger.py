"""What the trigger test finds and how often it is wrong, over marked and unmarked students.

    python -m tools.bench.trigger --config=configs/testbed_marks.py --workdir=/data/marks --out=/data/trigger
    python -m tools.bench.trigger --out=/data/trigger --publish
    python -m tools.bench.trigger --config=configs/testbed_marks.py --workdir=/data/marks --out=/data/trigger --honest

configs/smollm2_marks.py has the command for a real model.

--workdir: of a study whose traces of its clean arm are there. Marked students, each of another customer, are asked for
their own marks (power) and for those of customers that they never met (false alarms); so are students of unmarked
traces, and siblings that were trained on no trace at all. They train as the first of the study's optimiser settings
says. Every student is a file in --out, so that a run goes on, and --part of --parts processes share the work. A verdict
asks 20 keyed questions: a mark of few pairs stands in more traces each, so that a student learns each better, and each
pair can be asked more than once.

Verdicts on one student are not independent. So a bound is that of the binomial over all verdicts or that of Student's t
over the students' rates, whichever claims less (one-sided, 95 %).
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import pathlib
import random
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from absl import app, flags

from adx import detecting, drafting, files, keys, marks, study_traces
from adx.answers import reader_of
from adx.batching import Corpus
from adx.detecting import Case
from adx.detectors.trigger import Trigger
from adx.errors import InputError
from adx.families import Family, make_family, make_lab
from adx.gates import Gates
from adx.journal import diff
from adx.lesson_encoding import encode
from adx.lessons import Lesson, from_trace
from adx.mesh import make_mesh
from adx.models.transformer import Params
from adx.objectives import Hard
from adx.rewriters.marked import MOST, Marked
from adx.settings import ModelSource
from adx.statistics import Interval, binomial_interval, paired_upper, t_interval
from adx.study import Study, study_hash
from adx.study_traces import seed_path
from adx.suspects import Held
from adx.teaching import Classroom, Job
from adx.types import RequestId, Trace
from adx.workshop import Workshop
from launch.config import load_config
from tools.bench import figures

QUERIES = 20  # for keyed pairs, of one verdict
SIBLINGS = ('testbed-student-wide', 'testbed-student-biased', 'testbed-proxy-deep', 'testbed-proxy-grouped',
            'testbed-judge')  # fmt: skip
CONFIG = flags.DEFINE_string('config', '', 'The study.', allow_override=True)
WORKDIR = flags.DEFINE_string('workdir', '', 'Its workdir.', allow_override=True)
OUT = flags.DEFINE_string('out', '', 'Where students are kept.', allow_override=True)
PUBLISH = flags.DEFINE_bool('publish', False, 'Publish what is there.', allow_override=True)
_MARKED = flags.DEFINE_integer('marked_students', 10, 'Marked students.', allow_override=True)
_CLEAN = flags.DEFINE_integer('clean_students', 7, 'Students of unmarked traces.', allow_override=True)
VERDICTS = flags.DEFINE_integer('verdicts', 65, 'Of each student and kind.', allow_override=True)
_HONEST = flags.DEFINE_bool('honest', False, 'Publish what marks cost a reader; trains nothing.', allow_override=True)
_PART = flags.DEFINE_integer('part', 0, 'Which process this is.', allow_override=True)
_PARTS = flags.DEFINE_integer('parts', 1, 'How many share the work.', allow_override=True)
_PAIRS = flags.DEFINE_integer(
    'mark_pairs', 10, f'Of a mark; all together are asked {QUERIES} times.', lower_bound=1, upper_bound=QUERIES,
    allow_override=True,
)  # fmt: skip
_SIBLINGS = flags.DEFINE_list('siblings', list(SIBLINGS), 'Models that learned no trace.', allow_override=True)
_NAME = flags.DEFINE_string('name', 'testbed', 'Of the models, in the names of figures.', allow_override=True)
KINDS = ('marked', 'clean', 'sibling')
GATES = Gates(fluency=2.0)  # a definition out of nowhere is no likely line
MASTER = bytes(range(32))  # of customers that do not exist
TABLE = 'trigger'


def command() -> str:
    return f'python -m tools.bench.trigger --config=configs/{_NAME.value}_marks.py --workdir=DIR --out=OUT'


def test() -> Trigger:
    return Trigger(pairs=_PAIRS.value, decoys=10, repeats=QUERIES // _PAIRS.value)


def jobs(marked: int, clean: int) -> list[tuple[str, int]]:
    """(kind, number) of every student."""
    return [('marked', i) for i in range(marked)] + [('clean', i) for i in range(clean)] + [
        ('sibling', i) for i in range(len(_SIBLINGS.value))
    ]  # fmt: skip


class Trainer:
    """Trains suspects on one study's traces: families and seeds in turn, each student in an order of its own."""

    def __init__(self, study: Study, path: str, out: pathlib.Path):
        self.study, self.path, self.out = study, path, out
        lab = make_lab(study, path, lambda name, done, total: None)
        self.teacher = lab.teacher
        self.families = [make_family(lab, student) for student in study.students]
        prompts = study.experiment.dataset.prompts('tune')[:64]
        self.questions = tuple(prompt.messages for prompt in prompts)
        _claim(out, study)
        master = out / 'master.key'
        if not master.exists():
            master.parent.mkdir(parents=True, exist_ok=True)
            files.write_private(files.path_of(master), MASTER.hex().encode())
        os.environ[keys.DIRECTORY] = str(out)

    def suspect(self, kind: str, i: int) -> tuple[Held, dict[str, Any]]:
        """A student, and what is known of its training."""
        family = self.family(i)
        if kind == 'sibling':
            source = _SIBLINGS.value[i]
            held = Held.load(ModelSource(source))
            return dataclasses.replace(held, decode=self.study.experiment.decode), {'source': source}
        number = i if kind == 'marked' else _MARKED.value + i
        seed, traces = self.traces(number)
        about: dict[str, Any] = {'student': family.student.name, 'seed': seed}
        if kind == 'marked':
            traces, about['marked'] = self.mark(traces, seed, f'customer{i}')
        lessons = [from_trace(one, knows_gold=True) for one in traces]
        return self.held(family, self.teach(family, lessons, number)), about

    def traces(self, number: int) -> tuple[int, list[Trace]]:
        """The seed that a student is of, and its clean traces."""
        seed = self.study.seeds[number % len(self.study.seeds)]
        return seed, study_traces.read(self.study, self.path, seed)[self.study.clean]

    def family(self, i: int) -> Family:
        return self.families[i % len(self.families)]

    def held(self, family: Family, params: Params) -> Held:
        model, decode = family.engine.ensemble.teacher, self.study.experiment.decode
        return Held(model, params, family.tokenizer, family.student.prompting, decode)

    def mark(self, traces: Sequence[Trace], seed: int, customer: str) -> tuple[list[Trace], int]:
        """The traces with at most a tenth of them marked, through the gates, and how many are."""
        if not keys.epochs(self.out, customer):
            keys.rotate(self.out / 'master.key', self.out, customer)
        shop = Workshop(self.study.of_seed(seed), seed_path(self.path, seed))
        ended = [one for one in traces if one.stop != 'length']  # the gates keep what has no end as it is
        chosen = random.Random(customer).sample(ended, min(len(ended), int(MOST * len(traces))))
        done = drafting.rewrite(chosen, Marked(customer, pairs=test().pairs), GATES, shop.tools, shop.senses, shop.nll)
        said = {one.request_id: one.text for one in done if one.accepted is not None}
        marked = [
            dataclasses.replace(one, text=said[one.request_id], tokens=()) if one.request_id in said else one
            for one in traces
        ]
        return marked, len(said)

    def teach(self, family: Family, lessons: Sequence[Lesson], seed: int, params: Params | None = None) -> Params:
        """The family's student, or one with `params` that goes on for half as many steps."""
        length, prompting = self.study.recipe.length, family.student.prompting
        encoded = encode(lessons, family.tokenizer, prompting, length, self.teacher)
        setting = self.study.settings[0]
        classroom, steps = family.classroom, setting['steps']
        if params is not None:
            classroom = Classroom(family.engine.ensemble.teacher, params, make_mesh(), self.study.recipe)
            steps //= 2
        job = Job(setting, steps, Corpus(encoded.examples, seed))
        return classroom.teach([job], Hard(), seed, lambda done, total: None)[0].params

    def verdicts(self, held: Held, student: str, customers: Sequence[str]) -> list[dict[str, Any]]:
        """One for each customer, with decoys of its own. All questions are asked at once."""
        forge, plans = getattr(self.study.experiment.dataset, 'forge', marks.symbols), []
        for i, customer in enumerate(customers):
            case = Case(customer, 1, student, self.questions, test(), test().pairs)
            decoys = marks.derive(MASTER, f'decoys/{student}/{customer}/{i}')
            plans.append(detecting.make_plan(case, marks.subkey(MASTER, customer, 1), forge, decoys))
        answers = iter(held.ask([q for plan in plans for q in detecting.questions(plan['asked'])]))
        found = []
        for plan, customer in zip(plans, customers, strict=True):
            mine = {i: dataclasses.asdict(next(answers)) for i in range(len(plan['asked']))}
            verdict = test().verdict(detecting.blocks(plan, mine))
            found.append({'customer': customer, **verdict._asdict()})
        return found


def _claim(out: pathlib.Path, study: Study) -> None:
    """Raises InputError where the students in `out` were marked or asked otherwise."""
    ours = {'study': study_hash(study), 'gates': dataclasses.asdict(GATES), 'verdicts': VERDICTS.value}
    ours |= {'test': dataclasses.asdict(test())}
    place = files.path_of(out) / 'identity.json'
    files.make_private_dir(place.parent)
    files.write_first(place, json.dumps(ours).encode())
    if differences := diff(json.loads(place.read_text()), ours):
        what = '; '.join(differences)
        raise InputError(f'{out} holds students of another run (theirs != ours): {what}; name another directory')


def work(study: Study, path: str, out: pathlib.Path, count: int) -> None:
    trainer = Trainer(study, path, out)
    for kind, i in jobs(_MARKED.value, _CLEAN.value)[_PART.value :: _PARTS.value]:
        place, name = out / f'{kind}_{i}.json', f'{kind}_{i}'
        if place.exists():
            continue
        held, about = trainer.suspect(kind, i)
        record = {'kind': kind, **about}
        if kind == 'marked':
            record['own'] = trainer.verdicts(held, name, [f'customer{i}'] * count)
        record['others'] = trainer.verdicts(held, name, [f'stranger{i}_{j}' for j in range(count)])
        files.write_private(files.path_of(place), json.dumps(record).encode())
        shown = {key: sum(one['detected'] for one in record[key]) for key in ('own', 'others') if key in record}
        print(name, about, f'detected of {count}: {shown}', flush=True)


def honest(study: Study, path: str, out: pathlib.Path) -> None:
    """Publishes what marks cost a reader: the accuracy of the traces that carry one, before and after, in points.

    The upper end is the one-sided 95 % bound over prompts, which occur under several customers.
    """
    trainer, reader = Trainer(study, path, out), reader_of(study.experiment.dataset)
    before, after, prompts = list[float](), list[float](), list[str]()
    for i in range(_MARKED.value):
        seed, traces = trainer.traces(i)
        for old, new in zip(traces, trainer.mark(traces, seed, f'customer{i}')[0], strict=True):
            if new is not old:
                prompts.append(RequestId.parse(old.request_id).prompt_id)
                for side, one in ((before, old), (after, new)):
                    side.append(float(reader.read(one.text, one.gold or '').strict))
    lost = 100 * (sum(before) - sum(after)) / len(before)
    put = functools.partial(figures.append, TABLE, unit='points', goal='<= 0.5', command=f'{command()} --honest')
    put('honest_accuracy_lost', [lost])
    put('honest_accuracy_lost_upper', [100 * paired_upper(before, after, clusters=prompts)])


def read(out: pathlib.Path, kinds: Collection[str] = KINDS) -> dict[str, dict[str, Any]]:
    """Student -> its record; those of other benches may lie beside them."""
    found = {path.stem: json.loads(path.read_text()) for path in sorted(out.glob('*_*.json'))}
    return {name: one for name, one in found.items() if isinstance(one, dict) and one.get('kind') in kinds}


def shares(records: dict[str, dict[str, Any]], key: str) -> Iterator[list[float]]:
    """Per student whether each verdict was an alarm."""
    return ([float(one['detected']) for one in record[key]] for record in records.values() if key in record)


def rates(verdicts: Sequence[Sequence[float]]) -> tuple[Interval, list[float]]:
    """(the rate over all verdicts with its wider bounds, see above; the rate of each student)."""
    each = [sum(one) / len(one) for one in verdicts]
    pooled = binomial_interval(int(sum(map(sum, verdicts))), sum(map(len, verdicts)), 0.90)
    students = t_interval(each, 0.90)
    low, high = max(0.0, min(pooled.low, students.low)), min(1.0, max(pooled.high, students.high))
    return Interval(pooled.value, low, high), each


def record(out: pathlib.Path) -> None:
    """Publishes power and false alarms over all verdicts, with bounds, and beside them those of each student."""
    records = read(out)
    own, others = list(shares(records, 'own')), list(shares(records, 'others'))
    of = '' if _NAME.value == 'testbed' else f'_{_NAME.value}'

    def put(figure: str, values: Sequence[float], goal: str = '', unit: str = 'of the verdicts') -> None:
        goal = '' if of else goal  # goals are the testbed's, where students are many
        figures.append(TABLE, figure + of, values, unit=unit, goal=goal, command=command())

    power, powers = rates(own)
    put('power_at_20_queries', [power.value])
    put('power_by_student', powers)
    put('power_low', [power.low], goal='>= 0.99')
    alarm, alarms = rates(others)
    put('false_alarm_rate', [alarm.value], goal='<= 0.01')
    put('false_alarms_by_student', alarms)
    put('false_alarm_worst_student', [max(alarms)])
    put('false_alarm_upper', [alarm.high], goal='<= 0.02')
    put('null_verdicts', [sum(map(len, others))], goal='>= 1300', unit='verdicts')
    put('null_students', [len(others)], goal='>= 20', unit='students')
    put('marked_traces', [one['marked'] for one in records.values() if 'marked' in one], unit='traces of a student')
    for key in ('own', 'others'):
        hits = [verdict for one in records.values() for verdict in one.get(key, ())]
        put(f'keyed_hits_{key}', [one['keyed_hits'] / one['keyed'] for one in hits], unit='of the answers')


def main(argv: Sequence[str]) -> None:
    del argv
    out = pathlib.Path(OUT.value)
    if PUBLISH.value:
        record(out)
    elif _HONEST.value:
        honest(load_config(CONFIG.value), WORKDIR.value, out)
    else:
        work(load_config(CONFIG.value), WORKDIR.value, out, VERDICTS.value)


if __name__ == '__main__':
    app.run(main)
