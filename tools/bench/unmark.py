"""What attacks leave of a mark: a pattern, a detector without the key, what thieves do.

    python -m tools.bench.unmark --config=configs/testbed_marks.py --workdir=/data/marks --out=/data/unmark
    python -m tools.bench.unmark --out=/data/unmark --publish

--workdir: of a study whose traces of its clean arm are there. The students are those of tools/bench/trigger.py, by
number: the same customer's marks in the same traces. `filter_auc` is how well the attacker's detector tells traces that
carry a mark from those that do not, by their most suspicious line.
"""

from __future__ import annotations

import functools
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import app, flags
from scipy import stats

from adx import files, study_traces
from adx.attackers import Attackers
from adx.attacks import Attack
from adx.attacks.filters import Deduplicate
from adx.attacks.mixing import MixClean
from adx.attacks.rewrites import Canonicalise
from adx.attacks.unmark import FilterLines, StripLines, forge_lines, learn, lines_of
from adx.errors import InputError
from adx.lessons import Lesson, Transform, from_trace
from launch.config import load_config
from tools.bench import figures, trigger
from tools.bench.trigger import CONFIG, OUT, PUBLISH, VERDICTS, WORKDIR, Trainer

flags.adopt_module_key_flags(trigger)  # for --help: this program takes them too
_STUDENTS = flags.DEFINE_integer('attacked_students', 3, 'Of each attack.')
FURTHER = 'further'  # trained on clean traces afterwards, half as many steps
TRANSFORMS: dict[str, tuple[Transform, ...]] = {
    'no_attack': (),
    'strip_lines': (StripLines(),),
    'filter_lines': (FilterLines(),),
    'deduplicate': (Deduplicate(),),
    'canonicalise': (Canonicalise(),),
    'mix_clean_half': (MixClean(0.5),),
    FURTHER: (),
}
TABLE, COMMAND = 'trigger', 'python -m tools.bench.unmark --config=configs/testbed_marks.py --workdir=DIR --out=OUT'


class Bench:
    """The marked lessons of one customer and what is made of them."""

    def __init__(self, trainer: Trainer, i: int):
        self.trainer, self.i, study = trainer, i, trainer.study
        self.seed = study.seeds[i % len(study.seeds)]
        traces = study_traces.read(study, trainer.path, self.seed)[study.clean]
        self.clean = [from_trace(one, 'clean', knows_gold=True) for one in traces]
        marked, self.count = trainer.mark(traces, self.seed, f'customer{i}')
        self.lessons = [from_trace(one, knows_gold=True) for one in marked]
        self.is_marked = [one.text != other.text for one, other in zip(marked, traces, strict=True)]
        self.resources = Attackers(study, trainer.path, self.seed).resources('', self.clean)

    def suspect(self, kind: str) -> Any:
        lessons = Attack(kind, TRANSFORMS[kind]).prepare(self.lessons, self.resources).lessons
        family = self.trainer.family(self.i)
        params = self.trainer.teach(family, lessons, self.i)
        if kind == FURTHER:
            params = self.trainer.teach(family, self.clean, self.i, params)
        return self.trainer.held(family, params)

    @functools.cached_property
    def auc(self) -> float:
        """Of a trace's most suspicious line: the share of (marked, unmarked) pairs in the right order, ties by half."""
        if len(set(self.is_marked)) < 2:
            raise InputError(f'{sum(self.is_marked)} of {len(self.is_marked)} traces are marked: none to compare with')
        score = learn(forge_lines(self.resources), lines_of(self.lessons))
        worst = np.array([_worst(lesson, score) for lesson in self.lessons])
        is_marked = np.array(self.is_marked)
        marked, others = worst[is_marked], worst[~is_marked]
        return float(stats.mannwhitneyu(marked, others).statistic / (len(marked) * len(others)))


def _worst(lesson: Lesson, score: Any) -> float:
    return max(score(line) for line in lesson.text.splitlines() if line.strip())


def work(study: Any, path: str, out: pathlib.Path) -> None:
    trainer = Trainer(study, path, out)
    for i in range(_STUDENTS.value):
        bench = None
        for kind in TRANSFORMS:
            place = out / f'{kind}_{i}.json'
            if place.exists():
                continue
            bench = bench or Bench(trainer, i)
            verdicts = trainer.verdicts(bench.suspect(kind), f'marked_{i}', [f'customer{i}'] * VERDICTS.value)
            record = {'kind': kind, 'auc': bench.auc, 'marked': bench.count, 'own': verdicts}
            files.write_private(files.path_of(place), json.dumps(record).encode())
            print(kind, i, f'detected {sum(one["detected"] for one in verdicts)} of {len(verdicts)}', flush=True)


def record(out: pathlib.Path) -> None:
    """Publishes the attacker's AUC and, in samples of one student each, how often the mark is still found."""
    records = list(trigger.read(out, TRANSFORMS).values())
    put = functools.partial(figures.append, TABLE, unit='of the verdicts', goal='', command=COMMAND)
    put('filter_auc', [one['auc'] for one in records if one['kind'] == 'no_attack'], goal='<= 0.7', unit='AUC')
    for kind in TRANSFORMS:
        own = [one['own'] for one in records if one['kind'] == kind]
        put(f'power_after_{kind}', [sum(v['detected'] for v in verdicts) / len(verdicts) for verdicts in own])


def main(argv: Sequence[str]) -> None:
    del argv
    out = pathlib.Path(OUT.value)
    if PUBLISH.value:
        record(out)
    else:
        work(load_config(CONFIG.value), WORKDIR.value, out)


if __name__ == '__main__':
    app.run(main)
