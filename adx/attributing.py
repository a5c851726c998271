"""Whose marks a suspect carries: one verdict on its cases of several customers.

Each case alone raises false alarms at its level; of twenty customers one is then accused by chance every fifth time.
Holm's procedure over the customers bounds the probability that any of them is.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Sequence
from typing import Any

from etils import epath

from adx import files, locks, verdicts
from adx.errors import InputError, StorageError
from adx.journal import to_json
from adx.statistics import log_holm

COUNTS = ('customer', 'epoch', 'keyed_hits', 'keyed', 'decoy_hits', 'decoys', 'exploratory')


def attribute(paths: Sequence[epath.PathLike], signer: bytes) -> dict[str, Any]:
    """The signed joint verdict on the latest verdict of every case, which is kept in each of them.

    Raises InputError for a case without one, one that another key signed, cases of several suspects, whatever they are
    called, or levels, and two of one customer and epoch.
    """
    latest = [_latest(path, signer) for path in paths]
    suspect = _one('suspect', [one['suspect'] for one in latest])
    answered_by = _one('answered_by', [one['answered_by'] for one in latest])
    level = _one('level', [one['test']['level'] for one in latest])
    whose = [(one['customer'], one['epoch']) for one in latest]
    if len(set(whose)) < len(whose):
        raise InputError(f'cases of {sorted(whose)}: each customer and epoch is counted once, give one case of each')
    adjusted = log_holm([_log_p(one) for one in latest])
    cases = [
        {name: one[name] for name in COUNTS}
        | {'log_p': _log_p(one), 'adjusted_log_p': log_p, 'detected': log_p <= math.log(level)}
        for one, log_p in zip(latest, adjusted, strict=True)
    ]
    about = {'suspect': suspect, 'answered_by': answered_by, 'level': level}
    with contextlib.ExitStack() as held, files.os_errors(StorageError, 'a joint verdict was not written'):
        for case in sorted(map(files.absolute, paths)):  # in one order, so that two at once end
            held.enter_context(verdicts.locked(case))
        before = {path: verdicts.read(path, verdicts.JOINT) for path in paths}
        content = about | {'cases': cases, 'issued': locks.utc_now(), 'issued_before': _distinct(before.values())}
        signed = verdicts.sign(content | {'summary': summary(content)}, signer)
        for path in paths:
            verdicts.keep(path, [*before[path], signed], verdicts.JOINT)
    return signed


def _distinct(issued: Iterable[Sequence[dict[str, Any]]]) -> int:
    return len({to_json(one) for some in issued for one in some})


def _latest(path: epath.PathLike, signer: bytes) -> dict[str, Any]:
    issued = verdicts.read(path)
    if not issued:
        raise InputError(f'{path} has no verdict; issue one with --do=verdict first')
    if not verdicts.is_signed(issued[-1], verdicts.sign({}, signer)['public_key']):
        raise InputError(f'the last verdict of {path} was signed by another key, or changed since; issue it again')
    return issued[-1]['verdict']


def _one(name: str, values: Sequence[Any]) -> Any:
    if len(set(values)) != 1:
        raise InputError(f'the cases have {sorted(set(values))} as {name}; a joint verdict is on one')
    return values[0]


def _log_p(verdict: dict[str, Any]) -> float:
    """Of the test that the case named: the e-process bounds the chance of so much by 1 / e."""
    return -max(0.0, verdict['log_e']) if verdict['test']['sequential'] else verdict['log_p']


def summary(content: dict[str, Any]) -> str:
    """In plain language, what all cases together support."""
    named = [f'{one["customer"]} (epoch {one["epoch"]})' for one in content['cases'] if one['detected']]
    explores = [one['customer'] for one in content['cases'] if one['exploratory']]
    asked = f'{content["suspect"]} was asked about the marks of {len(content["cases"])} customers. '
    says = (
        f'It carries those of {", ".join(named)}: any of these would be named by chance less often than '
        f'{content["level"]:.2g} of the time, all customers taken together. '
        if named
        else f'None is found, at level {content["level"]:.2g} for all of them together. '
    )
    before = f'Joint verdicts on any of these cases issued before: {content["issued_before"]}; the level is of one. '
    note = f'Exploratory, for nothing was committed to: {", ".join(explores)}. ' if explores else ''
    limits = 'This does not say who collected the text or by which path it got there.'
    return asked + says + before + note + limits
