"""What a study keeps in its workdir: which study it is, and its graded students.

`private/study.json` says which study it is; `private/outcomes/` are journals with one line a graded student.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from adx import files, journal, locks, processes
from adx.errors import StorageError, WorkdirError
from adx.hashing import content_hash
from adx.outcomes import Outcome, ThreatModel
from adx.storage import Workdir, foreign, setup

OWNER = 'distil'  # of the journals, with the family and an attack behind it
Known = dict[str, Outcome]  # by name
Guard = Callable[[], Any]


def name_of(outcome: Outcome) -> str:
    """Names a graded student: seed/student/attack/arm/source/setting/split."""
    return name(outcome, outcome.setting, outcome.split)


def name(of: Any, setting: Mapping[str, float], split: str) -> str:
    """of: anything with seed, student, attack, arm and source."""
    settings = ','.join(f'{key}={value:g}' for key, value in sorted(setting.items())) or '-'
    return '/'.join((str(of.seed), of.student, of.attack, of.arm or of.source, of.source, settings, split))


def claim(path: str, identity: Mapping[str, Any]) -> None:
    """Makes the workdir this study's. Raises WorkdirError, with the difference, where it is another's."""
    workdir, ours = Workdir(path), json.loads(json.dumps(identity))
    place = workdir.private / 'study.json'
    with files.os_errors(WorkdirError, f'workdir {path} cannot be written'):
        for directory in (workdir.private, workdir.private / 'locks'):
            files.make_private_dir(directory)
        with setup(workdir):  # write_first lets only one be the first on gs:// alone
            files.write_first(place, json.dumps(ours, indent=1).encode())
    check_study(path, ours)


def check_study(path: str, identity: Mapping[str, Any]) -> None:
    """Raises WorkdirError, with the difference, where the workdir is another study's; it may be nobody's yet."""
    place, ours = Workdir(path).private / 'study.json', json.loads(json.dumps(identity))
    with files.os_errors(WorkdirError, f'{place} cannot be read'):
        if not files.exists(place):
            return
    theirs = journal.read_object(place, (), WorkdirError, 'restore it, or give another workdir')
    if differences := journal.diff(theirs, ours):
        raise foreign(path, 'study', differences)


def read(path: str) -> Known:
    """Every outcome so far, the first of each name. Raises StorageError where one cannot be read."""
    found: Known = {}
    for where, record in journal.read_records(Workdir(path).private / 'outcomes'):
        try:
            found.setdefault(record['request_id'], _from_record(record['outcome']))
        except (KeyError, TypeError, ValueError) as error:
            raise StorageError(f'{where} is no outcome ({error!r}); restore the file or delete that line') from error
    return found


def check_same(known: Known, attacks: Mapping[str, str], students: Mapping[str, str]) -> None:
    """attacks, students: name -> hash. Raises WorkdirError naming an outcome of another attack or student of a name;
    earlier versions of adx noted no hash of attacks.
    """
    for name, one in known.items():
        for kind, of, ours in (
            ('attack', one.attack, attacks.get(one.attack)), ('student', one.student, students.get(one.student)),
        ):  # fmt: skip
            theirs = one.identity.get(kind)
            if ours and theirs and theirs != ours:
                raise WorkdirError(
                    f'outcome {name} is of another {kind} {of!r} ({theirs} != {ours}); undo the change, or give the '
                    'new one another name'
                )


def _from_record(record: Mapping[str, Any]) -> Outcome:
    lists = {name: tuple(record[name]) for name in ('correct', 'curve')} | {'budgets': tuple(record.get('budgets', ()))}
    maps = {name: dict(record.get(name, {})) for name in ('identity', 'lessons')}
    found = Outcome(**dict(record) | lists | maps | {'threat': ThreatModel(**record['threat'])})
    name_of(found)  # what is no setting raises here
    return found


class Log:
    """The writing end of a study's outcomes; `known` holds what is there. written: None where another process of this
    program writes.
    """

    def __init__(self, path: str, written: journal.Journal | None, guard: Guard = contextlib.nullcontext):
        self.known = read(path)
        self._written, self._guard = written, guard

    def add(self, found: Sequence[Outcome]) -> None:
        """Saves outcomes; they are durable when this returns. All processes of one program add the same."""
        processes.together(lambda: self._save(found))
        self.known |= {name_of(one): one for one in found}

    def _save(self, found: Sequence[Outcome]) -> None:
        if self._written is None:
            return
        lines = [
            {'format_version': journal.FORMAT_VERSION, 'request_id': name_of(one), 'outcome': dataclasses.asdict(one)}
            for one in found
        ]
        with self._guard():
            self._written.append([journal.to_json(line) for line in lines])


def _owner(student: str, attack: str) -> str:
    """The hash tells student 'a' under 'b-c' from 'a-b' under 'c', and the journals of 'q1' from those of 'q1.5'."""
    return f'{OWNER}-{student}-{attack}-{content_hash([student, attack])[:8]}'


@contextlib.contextmanager
def open_log(path: str, student: str, attacks: Sequence[str], guard: Guard) -> Iterator[Log]:
    """Of one family under some attacks: nobody else distils it under any of them in the workdir meanwhile.

    guard: a context inside which no interruption is raised.
    """
    owners = [_owner(student, attack) for attack in attacks]
    workdir = Workdir(path)
    directory, places = workdir.private / 'outcomes', workdir.private / 'locks'
    with contextlib.ExitStack() as held:
        with files.os_errors(WorkdirError, f'workdir {path} cannot be written'):
            for place in (workdir.private, directory, places):
                files.make_private_dir(place)
            with setup(workdir):  # as whoever begins to write: see forgetting.alone
                for owner, attack in zip(owners, attacks, strict=True):
                    what = f'workdir {path}, student {student}, attack {attack},'
                    held.callback(locks.acquire(places / f'{owner}.lock', what).release)
        journal.cut_torn_tails(directory, owners[0])
        yield Log(path, held.enter_context(contextlib.closing(journal.Journal(directory, owners[0]))), guard)
