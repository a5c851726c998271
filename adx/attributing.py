"""Whose marks which suspects carry: one verdict on several cases.

They may be of several customers, suspects and checkpoints. Each case alone raises false alarms at its level; of twenty
customers one is then accused by chance every fifth time. Holm's procedure over the cases bounds the probability that
any of them is. What else was found out about the suspects, in cases beside these and in earlier verdicts of them,
counts with them: nobody chooses among results.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Sequence
from typing import Any

from etils import epath

from adx import detecting, files, locks, verdicts
from adx.errors import InputError, StorageError
from adx.journal import to_json
from adx.statistics import log_holm

COUNTS = (
    'suspect', 'answered_by', 'customer', 'epoch', 'commitment', 'keyed_hits', 'keyed', 'decoy_hits', 'decoys',
    'exploratory',
)  # fmt: skip


def attribute(paths: Sequence[epath.PathLike], signer: bytes) -> dict[str, Any]:
    """The signed joint verdict on the latest verdict of every case, which is kept in each of them.

    Raises InputError for a case without one, one that another key signed, cases of several levels, and two of one
    suspect, customer and epoch.
    """
    latest = [_latest(path, signer) for path in paths]
    level = _level([one['test']['level'] for one in latest])
    whose = [(one['answered_by'] or one['suspect'], one['customer'], one['epoch']) for one in latest]
    if len(set(whose)) < len(whose):
        raise InputError(f'cases of {sorted(whose)}: each is counted once, give one case of each')
    others = _others(paths, latest)
    # Whatever the others came to, as if by chance: p = 1 makes these the first in line, and so adjusted the most.
    adjusted = log_holm([*map(_log_p, latest), *[0.0] * len(others)])[: len(latest)]
    cases = [
        {name: one[name] for name in COUNTS}
        | {'log_p': _log_p(one), 'adjusted_log_p': log_p, 'detected': log_p <= math.log(level)}
        for one, log_p in zip(latest, adjusted, strict=True)
    ]
    about = {'level': level, 'others': others}
    with contextlib.ExitStack() as held, files.os_errors(StorageError, 'a joint verdict was not written'):
        for case in sorted(map(files.absolute, paths)):  # in one order, so that two at once end
            held.enter_context(verdicts.locked(case))
        before = {path: verdicts.read(path, verdicts.JOINT) for path in paths}
        content = about | {'cases': cases, 'issued': locks.utc_now(), 'issued_before': _distinct(before.values())}
        signed = verdicts.sign(content | {'summary': summary(content)}, signer)
        for path in paths:
            verdicts.keep(path, [*before[path], signed], verdicts.JOINT)
    return signed


def _others(paths: Sequence[epath.PathLike], latest: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """What else was found out about the suspects: the last verdict of every case beside these, and of these whatever an
    earlier verdict had otherwise, but for looks that a sequential test allows.
    """
    mine, found = {files.absolute(path) for path in paths}, dict[epath.Path, dict[str, Any]]()
    for path, one in zip(paths, latest, strict=True):
        cases = detecting.of_suspect(files.path_of(path), one['suspect'], one['answered_by'])
        found |= {case: issued[-1] for case, issued in cases.items() if case not in mine}
    earlier = {
        (path, log_p): signed
        for path, one in zip(map(str, paths), latest, strict=True) if not one['test']['sequential']
        for signed in verdicts.read(path)[:-1] if (log_p := signed['verdict'].get('log_p')) != one['log_p']
    }  # fmt: skip
    return [detecting.named(signed) for signed in (*earlier.values(), *found.values())]


def _distinct(issued: Iterable[Sequence[dict[str, Any]]]) -> int:
    return len({to_json(one) for some in issued for one in some})


def _latest(path: epath.PathLike, signer: bytes) -> dict[str, Any]:
    issued = verdicts.read(path)
    if not issued:
        raise InputError(f'{path} has no verdict; issue one with --do=verdict first')
    if not verdicts.is_signed(issued[-1], verdicts.sign({}, signer)['public_key']):
        raise InputError(f'the last verdict of {path} was signed by another key, or changed since; issue it again')
    return issued[-1]['verdict']


def _level(values: Sequence[float]) -> float:
    if len(set(values)) != 1:
        raise InputError(f'the cases have {sorted(set(values))} as level; a joint verdict is on one')
    return values[0]


def _log_p(verdict: dict[str, Any]) -> float:
    """Of the test that the case named: the e-process bounds the chance of so much by 1 / e."""
    return -max(0.0, verdict['log_e']) if verdict['test']['sequential'] else verdict['log_p']


def summary(content: dict[str, Any]) -> str:
    """In plain language, what all cases together support."""
    suspects = list(dict.fromkeys(one['suspect'] for one in content['cases']))
    customers = {(one['customer'], one['epoch']) for one in content['cases']}
    named: dict[str, list[str]] = {}
    for one in content['cases']:
        if one['detected']:
            named.setdefault(one['suspect'], []).append(f'{one["customer"]} (epoch {one["epoch"]})')
    carried = '; '.join(f'{suspect} carries those of {", ".join(whose)}' for suspect, whose in named.items())
    explores = [f'{one["customer"]} in {one["suspect"]}' for one in content['cases'] if one['exploratory']]
    were = 'was' if len(suspects) == 1 else 'were'
    asked = f'{", ".join(suspects)} {were} asked about the marks of {len(customers)} customers. '
    says = (
        f'{carried}: any of these would be named by chance less often than {content["level"]:.2g} of the time, all '
        'cases taken together. '
        if named
        else f'None is found, at level {content["level"]:.2g} for all of them together. '
    )
    others = ', '.join(f'{one["customer"]} {"found" if one["detected"] else "not found"}' for one in content['others'])
    beside = f'Counted with them are other results on these suspects ({others}). ' if others else ''
    before = f'Joint verdicts on any of these cases issued before: {content["issued_before"]}; the level is of one. '
    note = f'Exploratory, for nothing was committed to: {", ".join(explores)}. ' if explores else ''
    limits = 'This does not say who collected the text or by which path it got there.'
    return asked + says + beside + before + note + limits
