"""Published figures of studies, each backed by the students it was computed from.

tools/bench/results/frontier.json, and rewriting.json for studies with rewrites, are lists of rows, one for every figure
of a report. `raw` names a file with the graded students and traces of one study, and the criteria by which arms were
judged, prompt by prompt, where the traces are; rows are computed from it again by `verify`, which a test runs.

    python -m tools.bench.frontier --config=configs/testbed_screen.py --workdir=/data/screen    # publishes a study
    python -m tools.bench.frontier --config=configs/C.py --workdir=DIR --add    # and keeps what was published before
    python -m tools.bench.frontier --config=configs/bridge.py --not_run='no GPU was at hand'     # rows without a value
    python -m tools.bench.frontier --again               # after a change of the figures: all rows, from the raw files
    python -m tools.bench.frontier --render=README.md    # renders the tables
"""

from __future__ import annotations

import dataclasses
import gzip
import json
import math
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

from absl import flags

from adx import outcomes_io
from adx.assessing import Findings, find
from adx.attacks import AnswerOnly
from adx.defences import Undefended
from adx.errors import InputError
from adx.outcomes import Outcome, Quality, ThreatModel
from adx.quality import Criterion, forced_loss, per_prompt
from adx.reporting.page import number, with_steps
from adx.reporting.plan import Plan
from adx.reporting.rows import NOT_RUN, Row, Subject
from adx.study import Study, attack_hashes, known_as
from launch import program
from launch.config import load_config
from tools.bench.figures import RESULTS, commit_hash, rewrite_blocks, sha256

TABLES = ('frontier.json', 'rewriting.json')
ABOUT, SOURCE = ('study', 'testbed', 'split'), ('raw', 'command', 'commit')  # the same in all rows of a study
FIELDS = (
    *ABOUT, 'figure', 'role', 'defence', 'attack', 'student', 'seen', 'eligible', 'value', 'low', 'high', 'n', 'unit',
    'status', 'reason', *SOURCE,
)  # fmt: skip
COLUMNS = ('teacher_lost', 'points_lost', 'damage', 'excess_damage')  # of the rendered table
OF_ARMS = ('teacher_lost', 'length_ratio')  # whoever the student is
BY_ATTACK = ('damage_attacked', 'recovered')
BITS = ('correct', 'forced', 'lenient')

_CONFIG = flags.DEFINE_string('config', '', 'The config of the study to publish.', allow_override=True)
_WORKDIR = flags.DEFINE_string('workdir', '', 'Its workdir, with outcomes and quality.', allow_override=True)
_NOT_RUN = flags.DEFINE_string('not_run', '', 'Why the study of --config was not run; publishes empty rows.')
_ADD = flags.DEFINE_bool(
    'add', False, 'Keep what the published raw file has beyond the workdir, of the same study: attacks may be '
    'distilled in workdirs of their own.'
)  # fmt: skip
_AGAIN = flags.DEFINE_bool('again', False, 'Write the rows of every published study anew, from its raw file.')
_RENDER = flags.DEFINE_string(
    'render', '', 'File whose <!-- frontier:STUDY --> blocks are rewritten.', allow_override=True
)


def publish(name: str, study: Study, findings: Findings, command: str, results: pathlib.Path = RESULTS) -> list[dict]:
    """Writes the raw file and the rows of a study in place of its earlier ones, and returns the rows."""
    if study.experiment.rewrites:
        _check_answers(name, study, findings)
    if not findings.outcomes:
        raise InputError(f'study {name!r} has no graded student; run --stages=distil first')
    raw = f'raw/frontier_{name}.json.gz'
    data = gzip.compress(json.dumps(_to_json(findings), separators=(',', ':')).encode(), mtime=0)
    (results / 'raw').mkdir(parents=True, exist_ok=True)
    (results / raw).write_bytes(data)
    source = {'raw': {'path': raw, 'sha256': sha256(data)}, 'command': command, 'commit': commit_hash()}
    return _keep(name, study, findings.rows(), source, results)


def added(name: str, study: Study, findings: Findings, results: pathlib.Path = RESULTS) -> Findings:
    """The findings with what was published of the same study before and they do not have: students, measured arms,
    slices; and with what a token cost then.

    Raises InputError where nothing was, or another study of the name, WorkdirError where an attack was another one.
    """
    path = results / f'raw/frontier_{name}.json.gz'
    if not path.exists():
        raise InputError(f'study {name!r} has no raw file to add to; publish it without --add')
    before = _from_json(json.loads(gzip.decompress(path.read_bytes())))
    ours = known_as(study)
    if any(one.identity.get('study') not in ours for one in (*before.outcomes, *findings.outcomes)):
        raise InputError(f'{path.name} is of another study than {ours[0]}; publish what there is without --add')
    outcomes_io.check_same({outcomes_io.name_of(one): one for one in before.outcomes}, attack_hashes(study), {})
    known = {_key(one) for one in findings.outcomes}
    outcomes = [*findings.outcomes, *(one for one in before.outcomes if _key(one) not in known)]
    judged = max(findings, before, key=lambda one: len(one.qualities))  # by all that was measured in one workdir
    # Where nobody was graded no prompt of the split was read, and none has a slice.
    plan = dataclasses.replace(findings.plan, slices=(findings if findings.outcomes else before).plan.slices)
    qualities = _as_timed(judged.qualities, before.qualities)
    return dataclasses.replace(judged, plan=plan, outcomes=outcomes, qualities=qualities)


def _as_timed(qualities: Sequence[Quality], before: Sequence[Quality]) -> list[Quality]:
    """What a token costs was timed arm beside arm, and stays as that hour of that machine had it, where it had all."""
    timed = {(one.arm, one.seed): one.seconds for one in before}
    anew = {one.seed for one in qualities if not timed.get((one.arm, one.seed))}
    return [
        one if one.seed in anew else dataclasses.replace(one, seconds=timed[one.arm, one.seed]) for one in qualities
    ]


def _key(one: Outcome) -> tuple[Any, ...]:
    return one.student, one.attack, one.arm, one.source, one.seed


def _check_answers(name: str, study: Study, findings: Findings) -> None:
    """Raises InputError unless students of every rewrite, and of clean traces, learned from the answers alone too."""
    alone = {one.name for one in study.attacks if any(isinstance(each, AnswerOnly) for each in one.transforms)}
    learned = {one.arm for one in findings.outcomes if one.attack in alone}
    if lacking := sorted({study.clean, *(one.name for one in study.experiment.rewrites)} - learned):
        raise InputError(
            f'study {name!r} has rewrites, and no student that AnswerOnly taught from {lacking}; they are held against '
            'it, distil them too'
        )


def skip(name: str, study: Study, reason: str, results: pathlib.Path = RESULTS) -> list[dict]:
    """Writes the empty rows of a study that was not run, in place of its earlier ones, and returns them."""
    figures = ('cost_multiplier',) if study.ladder else ('points_lost', 'damage')
    rows = [
        Subject(arm, study.role(arm), student.name, student.seen, None).row(
            figure, study.attacks[0].name, reason=f'not run: {reason}'
        )
        for figure in figures for student in study.students for arm in study.arms if arm != study.clean
    ]  # fmt: skip
    return _keep(name, study, rows, {'raw': None, 'command': '', 'commit': ''}, results)


def _keep(
    name: str, study: Study, rows: Sequence[Row], source: dict[str, Any], results: pathlib.Path
) -> list[dict]:
    about = {'study': name, 'testbed': study.testbed or study.experiment.dataset.name, 'split': study.split}
    made = [_row(row, about, source) for row in rows]
    table = TABLES[bool(study.experiment.rewrites)]
    others = [row for row in read(results, (table,)) if row['study'] != name]
    (results / table).write_text(json.dumps(others + made, indent=1, allow_nan=False) + '\n', 'utf-8')
    return made


def read(results: pathlib.Path = RESULTS, tables: Sequence[str] = TABLES) -> list[dict[str, Any]]:
    """The published rows; none if there are none yet."""
    paths = [results / table for table in tables]
    return [row for path in paths if path.exists() for row in json.loads(path.read_text('utf-8'))]


def republish(results: pathlib.Path = RESULTS) -> None:
    """Writes the rows of every published study anew, from its raw file."""
    for table in TABLES:
        skipped = [row for row in read(results, (table,)) if row['raw'] is None]
        rows = [*(row for _, _, again in _computed(results, (table,)) for row in again), *skipped]
        if rows:
            (results / table).write_text(json.dumps(rows, indent=1, allow_nan=False) + '\n', 'utf-8')


def _computed(results: pathlib.Path, tables: Sequence[str] = TABLES) -> Iterator[tuple[str, list[dict], list[dict]]]:
    """Study, its rows as they are stated, and as they follow from its raw file. Raises InputError for another file."""
    rows = [row for row in read(results, tables) if row['raw'] is not None]
    for name in dict.fromkeys(row['study'] for row in rows):
        mine = [row for row in rows if row['study'] == name]
        about, source = ({k: mine[0][k] for k in keys} for keys in (ABOUT, SOURCE))
        path = results / source['raw']['path']
        data = path.read_bytes() if path.exists() else b''
        if sha256(data) != source['raw']['sha256']:
            raise InputError(f'{path.name} is not the file whose hash study {name!r} states; publish it again')
        yield name, mine, [_row(row, about, source) for row in _from_json(json.loads(gzip.decompress(data))).rows()]


def verify(results: pathlib.Path = RESULTS) -> None:
    """Computes every row again from its raw file. Raises InputError naming what differs."""
    for name, mine, again in _computed(results):
        if len(again) != len(mine):
            raise InputError(f'study {name!r} has {len(mine)} rows; its raw file gives {len(again)}')
        for stated, computed in zip(mine, again, strict=True):
            if tuple(stated) != FIELDS or not _same(stated, computed):
                where = '/'.join(str(stated.get(k)) for k in ('figure', 'defence', 'attack', 'student'))
                raise InputError(f'study {name!r} states {where} otherwise than its raw file; publish it again')


def _same(stated: dict[str, Any], computed: dict[str, Any]) -> bool:
    """Numbers to rounding of another machine's mathematics library, everything else exactly."""
    numbers = {k for k, v in computed.items() if isinstance(v, float)}
    near = all(stated[k] is not None and abs(stated[k] - computed[k]) <= 1e-6 * (1 + abs(computed[k])) for k in numbers)
    return near and all(stated[k] == v for k, v in computed.items() if k not in numbers)


def _row(row: Row, about: dict[str, Any], source: dict[str, Any]) -> dict[str, Any]:
    fields = dataclasses.asdict(row) | {'defence': row.arm} | about | source
    unbounded = {k for k, v in fields.items() if isinstance(v, float) and not math.isfinite(v)}
    return {k: None if k in unbounded else fields[k] for k in FIELDS}


def _to_json(findings: Findings) -> dict[str, Any]:
    return {
        'plan': dataclasses.asdict(findings.plan),
        'outcomes': [_bits(dataclasses.asdict(one)) for one in findings.outcomes],
        # What eligibility was judged by, prompt by prompt, stays in the workdir: its criteria are here.
        'qualities': [_bits(dataclasses.asdict(one) | {'by_prompt': {}}) for one in findings.qualities],
        'verdicts': {arm: [list(one) for one in judged] for arm, judged in findings.verdicts.items()},
    }


def _from_json(raw: dict[str, Any]) -> Findings:
    fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in raw['plan'].items()}
    plan = Plan(**fields)
    outcomes = [Outcome(**_bools(one) | {'threat': ThreatModel(**one['threat'])}) for one in raw['outcomes']]
    qualities = [Quality(**_bools(one)) for one in raw['qualities']]
    verdicts = {
        arm: [_judged_again(Criterion(*one), arm, plan.undefended, qualities) for one in judged]
        for arm, judged in raw['verdicts'].items()
    }
    return Findings(plan, outcomes, qualities, verdicts)


def _judged_again(criterion: Criterion, arm: str, clean: str, qualities: Sequence[Quality]) -> Criterion:
    """That of forced answers by what was forced; of the others the raw file has the verdict alone."""
    if criterion.name != 'forced_accuracy_loss':
        return criterion
    by_arm = {name: {one.seed: one for one in qualities if one.arm == name} for name in (arm, clean)}
    seeds = sorted(set(by_arm[arm]) & set(by_arm[clean]))
    defended, undefended = ([by_arm[name][seed] for seed in seeds] for name in (arm, clean))
    return forced_loss(per_prompt(undefended), per_prompt(defended))


def _bits(fields: dict[str, Any]) -> dict[str, Any]:
    return fields | {k: ''.join('01'[right] for right in fields[k]) for k in BITS if k in fields}


def _bools(fields: dict[str, Any]) -> dict[str, Any]:
    return fields | {k: tuple(bit == '1' for bit in fields[k]) for k in BITS if k in fields}


def render(name: str, results: pathlib.Path = RESULTS) -> str:
    """A line for every defence or control and student, and below one for every attack where several ran, in markdown
    without a line break at its end.
    """
    rows = [row for row in read(results) if row['study'] == name]
    by = {(row['figure'], row['defence'], row['student'], row['attack']): row for row in rows}
    told_otherwise = any(row['study'] == name for row in read(results, TABLES[1:]))
    measured = {row['figure'] for row in rows if row['value'] is not None}
    columns = with_steps((*OF_ARMS, *COLUMNS[1:]) if told_otherwise else COLUMNS, measured)
    lines = [f'| arm | student | {" | ".join(columns)} | eligible |', '|---' * (len(columns) + 3) + '|']
    for row in rows:
        if row['figure'] == 'points_lost':
            keys = [(c, row['defence'], '' if c in OF_ARMS else row['student']) for c in columns]
            found = [next((r for (f, d, s, _), r in by.items() if (f, d, s) == key), None) for key in keys]
            judged = {True: 'yes', False: 'no', None: 'not judged'}[row['eligible']]
            lines.append(f'| {" | ".join([row["defence"], row["student"], *map(_cell, found), judged])} |')
    attacked = [key[1:] for key, row in by.items() if key[0] == 'damage_attacked' and row['status'] != NOT_RUN]
    if len({attack for *_, attack in attacked}) > 1:
        lines += ['', f'| arm | student | attack | {" | ".join(BY_ATTACK)} |', '|---' * (len(BY_ATTACK) + 3) + '|']
        for of in attacked:
            found = [by.get((figure, *of)) for figure in BY_ATTACK]
            lines.append(f'| {" | ".join([*of, *(_cell(row) if row else "" for row in found)])} |')
    return '\n'.join(lines)


METHODS = ('teacher_lost', 'cost_per_token', 'damage')  # of the arms, then of the arms' students


def methods(name: str, results: pathlib.Path = RESULTS) -> str:
    """A line for every rule of a study, as configs/<name>.py has it: its price and what it takes from each family."""
    rows = {(r['figure'], r['defence'], r['student']): r for r in read(results) if r['study'] == name}
    students = list(dict.fromkeys(student for figure, _, student in rows if figure == 'damage'))
    columns = [(figure, '') for figure in METHODS[:-1]] + [(METHODS[-1], student) for student in students]
    titles = ' | '.join(' '.join(column).strip() for column in columns)
    lines = [f'| rule | arm | {titles} |', '|---' * (len(columns) + 2) + '|']
    for arm in load_config(str(RESULTS.parents[2] / 'configs' / f'{name}.py')).experiment.arms:
        if not isinstance(arm.defence, Undefended):
            cells = [_cell(rows.get((figure, arm.name, student))) for figure, student in columns]
            lines.append(f'| {" | ".join([f"`{_rule(arm.defence)}`", arm.name, *cells])} |')
    return '\n'.join(lines)


def _rule(defence: Any) -> str:
    inside = getattr(defence, 'rule', None)
    return type(defence).__name__ + (f'({_rule(inside)})' if inside is not None else '')


def _cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return number(None)
    known = {field.name for field in dataclasses.fields(Row)}
    return number(Row(**{k: v for k, v in row.items() if k in known} | {'arm': row['defence']}))


def rewrite(text: str, results: pathlib.Path = RESULTS) -> str:
    """`text` with the table of each <!-- frontier:STUDY --> and <!-- methods:STUDY --> block rendered anew."""
    text = rewrite_blocks(text, 'methods', lambda name: methods(name, results))
    return rewrite_blocks(text, 'frontier', lambda name: render(name, results))


def main() -> None:
    if _CONFIG.value:
        study, name = load_config(_CONFIG.value), pathlib.Path(_CONFIG.value).stem
        if _NOT_RUN.value:
            skip(name, study, _NOT_RUN.value)
            return
        command = f'python -m tools.bench.frontier --config={_CONFIG.value} --workdir=DIR'
        findings = find(study, _WORKDIR.value)
        if _ADD.value:
            findings, command = added(name, study, findings), f'{command} --add'
        for row in publish(name, study, findings, command):
            print(row['figure'], row['defence'], row['attack'], row['student'], _cell(row))
    if _AGAIN.value:
        republish()
    verify()
    if _RENDER.value:
        page = pathlib.Path(_RENDER.value)
        page.write_text(rewrite(page.read_text('utf-8')), 'utf-8')


if __name__ == '__main__':
    program.start(main)
