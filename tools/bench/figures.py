"""Published figures: a table of rows, each backed by the raw samples it was computed from.

tools/bench/results/<name>.json is a list of rows; value is the median of the samples in raw.path, low and
high are their smallest and largest, and raw.sha256 is the hash of that file. A row that was not measured says
'not_run'.

    python -m tools.bench.figures                        # verifies every table
    python -m tools.bench.figures --render=README.md     # and rewrites the block of each table in the file
"""

from __future__ import annotations

import datetime
import hashlib
import json
import operator
import os
import pathlib
import platform
import re
import statistics
import subprocess
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from absl import app, flags

from adx.errors import InputError

RESULTS = pathlib.Path(__file__).parent / 'results'
FIELDS = (
    'figure', 'value', 'low', 'high', 'n', 'unit', 'goal', 'status', 'raw', 'command',
    'machine', 'commit', 'date',
)  # fmt: skip
MEASURED, NOT_RUN = 'measured', 'not_run'

_RENDER = flags.DEFINE_string('render', '', 'File whose <!-- figures:NAME --> blocks are rewritten.')


def tables(results: pathlib.Path = RESULTS) -> list[str]:
    """The names of all tables but those of studies, which tools/bench/frontier.py keeps."""
    return sorted(path.stem for path in results.glob('*.json') if path.stem not in ('frontier', 'rewriting'))


def read(name: str, results: pathlib.Path = RESULTS) -> list[dict[str, Any]]:
    """The rows of a table; none if it does not exist yet."""
    path = results / f'{name}.json'
    return json.loads(path.read_text('utf-8')) if path.exists() else []


def append(
    name: str,
    figure: str,
    samples: Iterable[float],
    *,
    unit: str,
    goal: str,
    command: str,
    machine: str | None = None,
    results: pathlib.Path = RESULTS,
) -> dict[str, Any]:
    """Writes the samples and the row of `figure`, in place of an earlier one, and returns the row.

    samples: at least one, in the order in which they were measured. machine: None describes this one.
    """
    _check_names(name, figure)
    samples = [float(x) for x in samples]
    if not samples:
        raise InputError(f'figure {figure!r} has no samples; measure at least once or record it with not_run')
    raw = f'raw/{name}_{figure}.json'
    text = (
        json.dumps({'figure': figure, 'unit': unit, 'samples': samples}, indent=1) + '\n'
    )
    (results / 'raw').mkdir(parents=True, exist_ok=True)
    (results / raw).write_text(text, 'utf-8')
    row = {
        'figure': figure, **summary(samples), 'unit': unit, 'goal': goal, 'status': MEASURED,
        'raw': {'path': raw, 'sha256': sha256(text.encode())}, 'command': command,
        'machine': machine or describe_machine(), 'commit': commit_hash(),
        'date': datetime.date.today().isoformat(),
    }  # fmt: skip
    _put(name, row, results)
    return row


def not_run(
    name: str,
    figure: str,
    *,
    unit: str,
    goal: str,
    command: str,
    machine: str,
    results: pathlib.Path = RESULTS,
) -> None:
    """Records that a figure is missing and what would measure it; a row that was measured stays."""
    _check_names(name, figure)
    if any(row['figure'] == figure and row['status'] == MEASURED for row in read(name, results)):
        return
    known = {'figure': figure, 'n': 0, 'unit': unit, 'goal': goal, 'status': NOT_RUN}
    row = dict.fromkeys(FIELDS) | known | {'command': command, 'machine': machine}
    _put(name, row, results)


_NUMBER = r'(-?[\d.]+(?:e-?\d+)?)'
_SIGNS: dict[str, Callable[[float, float], bool]] = {
    '<=': operator.le, '<': operator.lt, '>=': operator.ge, '>': operator.gt, '': operator.eq,
}  # fmt: skip


def meets(goal: str, value: float) -> bool:
    """Whether a value is as its goal says: '<= 0.1', '-0.1 to 0.1', '130 by the formula'; '' asks for nothing. Words
    behind are of what.

    Raises ValueError for a goal without a number.
    """
    if not goal:
        return True
    if found := re.match(rf'{_NUMBER} to {_NUMBER}', goal):
        return float(found[1]) <= value <= float(found[2])
    found = re.match(rf'(<=|>=|<|>|) ?{_NUMBER}', goal)
    if found is None:
        raise ValueError(f'goal {goal!r} has no number')
    return _SIGNS[found[1]](value, float(found[2]))


def summary(samples: Sequence[float]) -> dict[str, Any]:
    """value (the median), low and high (the extremes) and n."""
    return {'value': statistics.median(samples), 'low': min(samples), 'high': max(samples), 'n': len(samples)}


def verify(name: str, results: pathlib.Path = RESULTS) -> None:
    """Recomputes every row of a table from its raw samples. Raises InputError naming the row that differs."""
    seen: set[str] = set()
    for row in read(name, results):
        where = f'{name}.json, figure {row.get("figure")!r}'
        if tuple(row) != FIELDS:
            raise InputError(
                f'{where} has fields {list(row)}; it must have {list(FIELDS)}, in order'
            )
        if row['figure'] in seen:
            raise InputError(f'{where} stands twice; a table has one row per figure')
        seen.add(row['figure'])
        if row['status'] == MEASURED:
            _verify_row(row, where, results)
        elif row['status'] != NOT_RUN or row['value'] is not None or row['raw'] is not None:
            raise InputError(
                f'{where} is neither {MEASURED!r} with raw samples nor {NOT_RUN!r} without a value'
            )


def _verify_row(row: dict[str, Any], where: str, results: pathlib.Path) -> None:
    path = results / row['raw']['path']
    if not path.exists():
        raise InputError(f'{where}: {path.name} is missing; measure again with `{row["command"]}`')
    data = path.read_bytes()
    if sha256(data) != row['raw']['sha256']:
        raise InputError(f'{where}: {path.name} is not the file whose hash the row states; measure again')
    raw = json.loads(data)
    stated = {key: row[key] for key in ('value', 'low', 'high', 'n')}
    if (raw['figure'], raw['unit']) != (row['figure'], row['unit']) or summary(raw['samples']) != stated:
        raise InputError(
            f'{where} states {stated}; its samples give {summary(raw["samples"])}; measure again'
        )


def render(name: str, results: pathlib.Path = RESULTS) -> str:
    """The table in markdown, without a line break at its end; but for what `precision` renders."""
    lines = ['| figure | median | range | n | goal | machine | commit |', '|---|---|---|---|---|---|---|']
    for row in read(name, results):
        if _PRECISION.fullmatch(row['figure']):
            continue
        if row['status'] == MEASURED:
            value, spread = f'{row["value"]:.3g} {row["unit"]}', f'{row["low"]:.3g} to {row["high"]:.3g}'
        else:
            value, spread = 'not run', ''
        cells = (
            f'`{row["figure"]}`',
            value,
            spread,
            row['n'],
            row['goal'],
            row['machine'],
            row['commit'] or '',
        )
        lines.append('| ' + ' | '.join(str(cell).strip() for cell in cells) + ' |')
    return '\n'.join(lines)


_PRECISION = re.compile(r'precision_(sin|step|changed)_(\w+)_(float32|bfloat16|float16)_1em(\d+)')


def precision(name: str, results: pathlib.Path = RESULTS) -> str:
    """What tools/precision.py recorded in a table, a line for every proxy, format and step."""
    found: dict[tuple[str, ...], dict[str, dict[str, Any]]] = {}
    for row in read(name, results):
        if match := _PRECISION.fullmatch(row['figure']):
            found.setdefault(match.groups()[1:], {})[match[1]] = row
    lines = ['| proxy | format | eps | sine | step | changed | commit |', '|---|---|---|---|---|---|---|']
    for (proxy, dtype, eps), rows in sorted(found.items(), key=lambda one: one[0][0]):
        known = {kind: row for kind, row in rows.items() if row['status'] == MEASURED}
        cells = [f'{known[kind]["value"]:.3g}' if kind in known else 'not run' for kind in ('sin', 'step', 'changed')]
        commits = sorted({row['commit'] for row in known.values()})
        lines.append(f'| {" | ".join([proxy, dtype, f"1e-{eps}", *cells, ", ".join(commits)])} |')
    return '\n'.join(lines)


def rewrite(text: str, results: pathlib.Path = RESULTS) -> str:
    """`text` with the table of each <!-- figures:NAME --> and <!-- precision:NAME --> block rendered anew."""
    text = rewrite_blocks(text, 'precision', lambda name: precision(name, results))
    return rewrite_blocks(text, 'figures', lambda name: render(name, results))


def rewrite_blocks(text: str, kind: str, content: Callable[[str], str]) -> str:
    """`text` with what stands in each <!-- kind:NAME --> ... <!-- /kind --> replaced by content(NAME)."""

    def block(match: re.Match[str]) -> str:
        return f'{match[1]}\n{content(match[2])}\n<!-- /{kind} -->'

    return re.sub(rf'(<!-- {kind}:(\w+) -->).*?<!-- /{kind} -->', block, text, flags=re.DOTALL)


def describe_machine() -> str:
    """Its accelerators where JAX runs on some, else its CPU."""
    import jax  # here, because tables are rendered without a device

    devices = jax.devices()
    if devices[0].platform == 'cpu':
        return describe_cpu()
    return f'{len(devices)} x {devices[0].device_kind}'


def describe_cpu() -> str:
    """The model and the number of usable cores of this machine's CPU."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
    cpuinfo = pathlib.Path('/proc/cpuinfo')
    found = re.search(r'^model name\s*: (.*)$', cpuinfo.read_text(), re.M) if cpuinfo.exists() else None
    return f'{found[1].strip() if found else platform.machine()}, {cores} cores'


def commit_hash() -> str:
    """The commit of this checkout, with '+' where adx/ or tools/ differ from it."""
    root = RESULTS.parents[2]

    def git(*args: str) -> str:
        return subprocess.run(
            ['git', *args], cwd=root, capture_output=True, text=True, check=True
        ).stdout.strip()

    changed = git('status', '--porcelain', '--', 'adx', 'tools', ':!tools/bench/results')
    return git('rev-parse', '--short', 'HEAD') + ('+' if changed else '')


def _put(name: str, row: dict[str, Any], results: pathlib.Path) -> None:
    rows = read(name, results)
    places = [i for i, old in enumerate(rows) if old['figure'] == row['figure']]
    if places:
        rows[places[0]] = row
    else:
        rows.append(row)
    results.mkdir(parents=True, exist_ok=True)
    (results / f'{name}.json').write_text(json.dumps(rows, indent=1) + '\n', 'utf-8')


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _check_names(*names: str) -> None:
    for name in names:
        if not re.fullmatch(r'[a-z0-9_]+', name):
            raise InputError(f'name {name!r} is not allowed; it must consist of a-z, 0-9 and _')


def main(argv: Sequence[str]) -> None:
    del argv
    for name in tables():
        verify(name)
    if _RENDER.value:
        page = pathlib.Path(_RENDER.value)
        page.write_text(rewrite(page.read_text('utf-8')), 'utf-8')


if __name__ == '__main__':
    app.run(main)
