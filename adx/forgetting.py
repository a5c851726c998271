"""Removes a request: all samples and settings of its prompt, from traces and release.

    private/forgotten.json   hashes of the prompts that were removed, written first: nobody decodes them again, and what
                             was stopped halfway goes on when it is run again

A request is named by the first three parts of its id, dataset/split/row; what follows in a longer id is left out, since
samples and settings of one prompt hold the same words.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from etils import epath

from adx import export, files, instructions, journal, locks, rewrites_io
from adx.errors import InputError, StorageError
from adx.journal import FORMAT_VERSION, to_json
from adx.keeping import TRAINING
from adx.storage import FORGOTTEN, Workdir, setup

PARTS = 3  # of a request id, that name the prompt
BEYOND = (
    'copies of the release and of pages (show_traces, blind_review, report) that were taken elsewhere',
    'backups, snapshots and old versions of files or objects',
)


@dataclasses.dataclass
class Found:
    """What was removed, a line each, and what stays or has to be done by hand."""

    removed: list[str] = dataclasses.field(default_factory=list)
    left: list[str] = dataclasses.field(default_factory=list)


def prompt_of(request_id: str) -> str:
    """The first three parts of a request id. Raises InputError where it has fewer, or an empty one."""
    parts = request_id.split('/')[:PARTS]
    if len(parts) < PARTS or not all(parts):
        raise InputError(f'request id {request_id!r} names no prompt; give dataset/split/row, as traces have it')
    return '/'.join(parts)


def _hash(prompt: str) -> str:
    return hashlib.sha256(prompt.encode()).hexdigest()


def is_forgotten(workdir: Workdir) -> Callable[[str], bool]:
    """Whether a request id is of a prompt that was removed."""
    gone = workdir.forgotten()
    return lambda id_: bool(gone) and _hash(prompt_of(id_)) in gone


def forget(path: epath.PathLike, request_id: str) -> Found:
    """Removes the request from a workdir and those inside it, and says what it could not undo.

    Stopped at any moment the same call goes on. Raises InputError where nothing is known of the request, WorkdirError
    while a process works in a workdir.
    """
    prompt, found = prompt_of(request_id), Found()
    places = list(inside(Workdir(path)))
    if not places:
        _ = Workdir(path).experiment  # says that it is no workdir
    with contextlib.ExitStack() as stack, files.os_errors(StorageError, f'{path} was not cleaned'):
        stack.enter_context(alone([Workdir(path), *places]))
        known = [place for place in places if _knows(place, prompt)]
        if not known:
            raise InputError(f'{path} has nothing of request {prompt!r}; check the id, its parts are dataset/split/row')
        split = prompt.split('/')[1]
        noted = [one for one in places if one in known or one.experiment['experiment'].get('split') == split]
        for place in noted:
            _note(place, prompt)
        for place in noted:
            check_idle(place)
            _remove(place, prompt, found)
            _remove_search(place, found)
        _remove_report(Workdir(path), found)
        _remove_training(Workdir(path), found)
    for place in known:
        _release(place, found)
        _say_what_stays(place, found)
    _say_what_learnt(Workdir(path), found)
    found.left += BEYOND
    return found


def inside(workdir: Workdir) -> Iterator[Workdir]:
    """The workdir, if it is one itself, and those of holdout traces and of a study's seeds within it."""
    if (workdir.private / 'experiment.json').exists():
        yield workdir
    seeds = workdir.private / 'seeds'
    nested = [workdir.private / 'holdout', *(sorted(seeds.iterdir()) if seeds.exists() else ())]
    for place in nested:
        if place.exists():
            yield from inside(Workdir(place))


@contextlib.contextmanager
def alone(workdirs: Sequence[Workdir]) -> Iterator[None]:
    """Nobody begins to write the workdirs meanwhile. Raises WorkdirError naming who does already."""
    with contextlib.ExitStack() as stack:
        for workdir in {workdir.path: workdir for workdir in workdirs}.values():
            # A store has no folders: that of the locks is gone with the last of them.
            if files.is_object_store(workdir.path) or (workdir.private / 'locks').exists():
                stack.enter_context(setup(workdir))
                check_idle(workdir)
        yield


def check_idle(workdir: Workdir) -> None:
    """Raises WorkdirError naming who writes the workdir.

    Whoever begins to takes `setup` first, which `alone` holds, but for generation on a store. That takes its lock and
    reads then what is noted in the workdir: so who notes something looks again afterwards.
    """
    for path in files.list_files(workdir.private / 'locks', '.lock'):
        locks.check_free(path, f'workdir {workdir.path}, {path.name.removesuffix(".lock")},')


def _is_of(prompt: str) -> Callable[[dict[str, Any]], bool]:
    return lambda record: record['request_id'].startswith(f'{prompt}/')


def _knows(workdir: Workdir, prompt: str) -> bool:
    """Whether it has records of the prompt, or has begun to forget it."""
    records = (record for name in ('journal', 'rejected') for _, record in journal.read_records(workdir.private / name))
    return _hash(prompt) in workdir.forgotten() or any(map(_is_of(prompt), records))


def _note(workdir: Workdir, prompt: str) -> None:
    hashes = sorted(workdir.forgotten() | {_hash(prompt)})
    record = {'format_version': FORMAT_VERSION, 'prompts': hashes}
    files.write_private(workdir.private / FORGOTTEN, to_json(record).encode())


def _remove(workdir: Workdir, prompt: str, found: Found) -> None:
    private = workdir.private
    journals = [private / 'journal', private / 'rejected', private / 'scores' / 'nll', private / 'scores' / 'harm']
    journals += [rewrites_io.directory_of(workdir, name) for name in rewrites_io.names(workdir)]
    for directory in (*journals, private / 'selections', private / 'report'):
        for path in files.list_files(directory, files.TEMPORARY):  # of a writer that was killed
            files.remove(path)
    for directory in journals:
        if count := journal.drop_records(directory, _is_of(prompt)):
            found.removed.append(f'{directory}: {count} records')
    for name in workdir.selections():
        choices = workdir.selection(name)
        kept = [choice for choice in choices if choice['prompt'] != prompt]
        if len(kept) < len(choices):
            place = private / 'selections' / f'{name}.jsonl'
            files.write_private(place, ''.join(f'{to_json(choice)}\n' for choice in kept).encode())
            found.removed.append(f'{place}: its choice')


def _remove_report(workdir: Workdir, found: Found) -> None:
    """The report shows traces, and its figures count them; the audit has ends of them."""
    for name in ('report.html', 'report.json', 'audit.json'):
        place = workdir.private / 'report' / name
        if place.exists():
            files.remove(place)
            found.removed.append(f'{place}: as a whole; make it anew with --stages=report')


def _remove_training(workdir: Workdir, found: Found) -> None:
    """Students that are not done have learnt from it, and would go on with other lessons."""
    _remove_learners(workdir.private / TRAINING, 'students in training, which --stages=distil begins anew', found)


def _remove_search(workdir: Workdir, found: Found) -> None:
    """A search for instructions that is not done has rewritten it, and proxies have learnt from it."""
    if instructions.forget(workdir):
        found.removed.append(f'{workdir.private / "evolved"}: the texts that are not scored yet')
    _remove_learners(workdir.private / 'evolved' / TRAINING, 'proxies, which tools.evolve trains anew', found)


def _remove_learners(place: epath.Path, what: str, found: Found) -> None:
    if place.exists():
        place.rmtree()
        found.removed.append(f'{place}: {what}')


def _release(workdir: Workdir, found: Found) -> None:
    """Writes the release again from what is left, or takes it away where that cannot be."""
    if not files.is_object_store(workdir.path):
        for name in ('export.new', 'export.old'):  # of an export that was killed
            shutil.rmtree(workdir.private / name, ignore_errors=True)
    if not workdir.release.exists():
        return
    try:
        recipe = journal.read_object(workdir.private / 'export.json', ('recipe',), InputError, 'export again')['recipe']
        export.export(workdir.path, **recipe)
        found.removed.append(f'{workdir.release}: written again without it')
    except (TypeError, InputError) as error:
        files.remove_directory(workdir.release)
        again = f'python -m tools.export_traces --workdir={workdir.path}'
        found.removed.append(f'{workdir.release}: as a whole ({error}); write it again with {again}')


def _say_what_stays(workdir: Workdir, found: Found) -> None:
    data = workdir.experiment['experiment'].get('dataset') or {}
    named = f'{data.get("type", "")!r} {data.get("path", "")!r}'
    found.left.append(f'the data set {named} of {workdir.path} has the prompt')
    above = workdir.path.parent  # a holdout workdir stands in private/ of the one whose directions it serves
    if workdir.path.name == 'holdout' and (above / 'directions').exists():
        found.left.append(
            f'{above / "directions"} was taken on it, and so were tokens served along it; delete it and '
            'run --stages=prepare for a new one'
        )


def _say_what_learnt(workdir: Workdir, found: Found) -> None:
    names = [record['request_id'] for _, record in journal.read_records(workdir.private / 'outcomes')]
    if names:
        found.left.append(
            f'{len(names)} students are graded in {workdir.private / "outcomes"}; those trained before now may have '
            'learnt from it: run the study in a new workdir where that matters'
        )
    quality = workdir.private / 'quality'
    if quality.exists():
        found.left.append(
            f'{quality} has numbers of it, without words, among those of every prompt; where that matters delete it '
            'and run --stages=assess again'
        )
    found.left.append('models trained on these traces outside of adx')
