"""A blind comparison: a shuffled page of clean and defended answers, and a sheet's score.

    python -m tools.blind_review --workdir=/data/run --defended=poe --page=review.html --key=/data/run/private/key.json
    python -m tools.blind_review --score=sheet.json --key=/data/run/private/key.json

The page tells nothing of which is which; the key, readable by its owner only, does. Exit codes: 0 done, 2 flags, 3
input, 4 workdir, 74 storage.
"""

from __future__ import annotations

import json
import random
import secrets
import sys
from collections.abc import Sequence
from typing import Any

from absl import flags
from etils import epath
from scipy import stats

from adx import files, rewrites_io, study_traces
from adx.errors import ConfigError, InputError, StorageError
from adx.hashing import content_hash
from adx.pages import template
from adx.storage import Workdir
from adx.types import Trace
from launch import program

# Tests load several programs into one process.
WORKDIR = flags.DEFINE_string(
    'workdir', '', 'The workdir of a run with both, local or gs://.', allow_override=True
)
CLEAN = flags.DEFINE_string('clean', 'plain', 'The arm of the undefended teacher.')
DEFENDED = flags.DEFINE_string('defended', '', 'The arm, selection or rewrite that is compared with it.')
PAIRS = flags.DEFINE_integer('pairs', 50, 'How many pairs.', lower_bound=1)
SEED = flags.DEFINE_integer('seed', None, 'Of which pairs, and which side is which; else nobody can know it.')
PAGE = flags.DEFINE_string('page', 'review.html', 'Where the page is written.')
KEY = flags.DEFINE_string('key', '', 'Where the key is written, or with --score read. It is PRIVATE.')
SCORE = flags.DEFINE_string('score', '', 'A returned sheet: prints its score instead.')
SIDES, CHOICES = ('A', 'B'), ('A', 'B', 'same')


def choose(workdir: Workdir, settings: Sequence[str], count: int, seed: int) -> list[tuple[Trace, ...]]:
    """`count` random prompts that both settings answered, in random order: (clean, defended) each, the first samples.

    Raises InputError where a setting has no trace or too few prompts have both.
    """
    sides = [study_traces.one_each(rewrites_io.of_setting(workdir, setting)) for setting in settings]
    for setting, side in zip(settings, sides, strict=True):
        if not side:
            there = rewrites_io.settings(workdir)
            raise InputError(f'the workdir has no finished trace of {setting!r}; it has {there}')
    both = [tuple(side[prompt] for side in sides) for prompt in sorted(set.intersection(*map(set, sides)))]
    if len(both) < count:
        raise InputError(f'{len(both)} prompts have traces of both and --pairs is {count}; ask for fewer')
    return random.Random(seed).sample(both, count)


def shuffle(chosen: Sequence[tuple[Trace, ...]], seed: int) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """What the page shows, and the key: which side of each pair is defended. Half of them each, so that a reader who
    always says A prefers nothing."""
    draw = random.Random(f'sides {seed}')
    sides = [SIDES[i % 2] for i in range(len(chosen))]
    draw.shuffle(sides)
    pairs, rows = [], []
    for number, ((clean, defended), side) in enumerate(zip(chosen, sides, strict=True)):
        texts = {side: defended.text, SIDES[side == 'A']: clean.text}
        question = clean.messages[-1]['content'] if clean.messages else ''
        pairs.append({'number': number, 'question': question, **texts})
        rows.append({'defended': side, 'clean_id': clean.request_id, 'defended_id': defended.request_id})
    return pairs, {'sheet': content_hash(pairs), 'rows': rows}


def render(pairs: Sequence[dict[str, Any]], sheet: str) -> str:
    """The page: nothing is loaded, everything is escaped, and no script but its own runs."""
    return template('review.html').render(pairs=pairs, sheet=sheet, nonce=secrets.token_urlsafe(16))


def read_json(path: str, flag: str) -> dict[str, Any]:
    """Raises InputError naming the file."""
    try:
        value = json.loads(epath.Path(path).read_text())
    except (OSError, ValueError) as error:
        reason = getattr(error, 'strerror', None) or error
        raise InputError(f'{flag} {path} cannot be read ({reason}); give the file that was written') from error
    if not isinstance(value, dict) or (type(value.get('sheet')), type(value.get('rows'))) != (str, list):
        raise InputError(f'{flag} {path} has no sheet and rows; give the file that was written')
    return value


def check_sheet(sheet: dict[str, Any], key: dict[str, Any]) -> None:
    """Raises InputError for a sheet of another page, and for rows that the page cannot have made."""
    if sheet['sheet'] != key['sheet'] or len(sheet['rows']) != len(key['rows']):
        raise InputError('the sheet belongs to another page than the key; give the key that was written with it')
    for number, row in enumerate(sheet['rows']):
        good = isinstance(row, dict) and row.get('pair') == number and row.get('prefer') in (None, *CHOICES)
        if not good or not isinstance(row.get('odd'), list) or not all(side in SIDES for side in row['odd']):
            raise InputError(f'row {number} of the sheet is {row!r:.80}; download the sheet anew from the page')


def score(sheet: dict[str, Any], key: dict[str, Any]) -> str:
    """Preferences among those who had one, with the exact binomial interval, and where something odd was noticed."""
    check_sheet(sheet, key)
    sides = [row['defended'] for row in key['rows']]
    answers = [row['prefer'] for row in sheet['rows']]
    given = [(answer, side) for answer, side in zip(answers, sides, strict=True) if answer in SIDES]
    defended = sum(answer == side for answer, side in given)
    same, missing = answers.count('same'), answers.count(None)
    lines = [f'pairs: {len(answers)}; no difference: {same}; not answered: {missing}']
    if given:
        test = stats.binomtest(defended, len(given))
        low, high = test.proportion_ci(0.95, method='exact')
        lines.append(
            f'defended preferred: {defended} of {len(given)} = {defended / len(given):.3f} '
            f'(95 % exact: {low:.3f} to {high:.3f}; p = {test.pvalue:.3g} against 1/2)'
        )
    else:
        lines.append('defended preferred: nobody had a preference')
    noticed = [(side in row['odd'], SIDES[side == 'A'] in row['odd']) for row, side in
               zip(sheet['rows'], sides, strict=True)]  # fmt: skip
    lines += ['noticed something odd   clean odd   clean not', *_table(noticed)]
    return '\n'.join(lines)


def _table(noticed: Sequence[tuple[bool, bool]]) -> list[str]:
    """Pairs by (defended odd, clean odd), and the exact test of the pairs in which one side only is odd."""
    count = {cell: noticed.count(cell) for cell in ((True, True), (True, False), (False, True), (False, False))}
    lines = [
        f'{name:<22} {count[odd, True]:>10} {count[odd, False]:>11}'
        for name, odd in (('defended odd', True), ('defended not', False))
    ]
    apart = count[True, False] + count[False, True]
    if apart:
        test = stats.binomtest(count[True, False], apart)
        low, high = test.proportion_ci(0.95, method='exact')
        lines.append(
            f'where one side only is odd it is the defended one in {count[True, False]} of {apart} '
            f'(95 % exact: {low:.3f} to {high:.3f}; p = {test.pvalue:.3g})'
        )
    return lines


def write(workdir: Workdir, settings: Sequence[str], page: str, key: str) -> None:
    """Key first: a page without its key is worth nothing."""
    seed = secrets.randbits(64) if SEED.value is None else SEED.value
    pairs, made = shuffle(choose(workdir, settings, PAIRS.value, seed), seed)
    text = render(pairs, made['sheet'])
    with files.os_errors(StorageError, f'{key} was not written'):
        files.write_private(epath.Path(key), json.dumps(made, indent=1).encode())
    with files.os_errors(StorageError, f'{page} was not written'):
        epath.Path(page).write_text(text)
    print(f'{page} is written, and its key {key}, which is private', file=sys.stderr)


def main() -> None:
    if not KEY.value:
        raise ConfigError('--key is missing; name the file of the key, beside the private files of the workdir')
    if SCORE.value:
        print(score(read_json(SCORE.value, '--score'), read_json(KEY.value, '--key')))
        return
    if not WORKDIR.value or not DEFENDED.value:
        raise ConfigError('give --workdir and --defended to write a page, or --score to score a sheet')
    if CLEAN.value == DEFENDED.value:
        raise ConfigError(f'--clean and --defended are both {CLEAN.value!r}; name two')
    write(Workdir(WORKDIR.value), (CLEAN.value, DEFENDED.value), PAGE.value, KEY.value)


if __name__ == '__main__':
    program.start(main)
