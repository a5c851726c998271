"""The rewrites of a workdir: whose each is, and what became of its traces.

    private/rewrites/<name>/identity.json   what the rewrite belongs to, written first
    private/rewrites/<name>/models.json     the weights that began it
    private/rewrites/<name>/*.jsonl         journals: one line a trace
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from typing import Any

from adx import drafting, files, instructions, keys, loading, storage, watch
from adx import experiment as experiments
from adx.drafting import Rewrite, Rewritten
from adx.errors import InputError, StorageError
from adx.experiment import Experiment, to_json
from adx.hashing import content_hash
from adx.journal import FORMAT_VERSION, diff, read_object, read_records
from adx.rewriters.evolved import Evolved
from adx.rewriters.marked import Marked
from adx.storage import Workdir
from adx.types import RequestId, Trace


def directory_of(workdir: Workdir, name: str) -> Any:
    return workdir.private / 'rewrites' / name


def identity(experiment: Experiment, one: Rewrite) -> dict[str, Any]:
    """What a rewrite belongs to beside its workdir, JSON-able: itself and the rewrites that it is made of."""
    found = {'format_version': FORMAT_VERSION, **experiments.writer_identity(experiment), 'rewrite': to_json(one)}
    marked = drafting.innermost(one.rewriter)
    if isinstance(marked, Marked):
        found['key'] = keys.fingerprint(keys.served(marked.customer, marked.epoch))
    by_name = {each.name: each for each in experiment.rewrites}
    others = {'before': one.of, 'like': drafting.matched_to(one.rewriter)}
    return found | {role: identity(experiment, by_name[name]) for role, name in others.items() if name in by_name}


def _instructions(experiment: Experiment, workdir: Workdir, one: Rewrite) -> dict[str, str]:
    """Rewrite -> what a search had found when it was begun, of those that this one is made of."""
    sources = one.of, drafting.matched_to(one.rewriter)
    before = [each.name for name in sources for each in drafting.chain(experiment.rewrites, name)]
    found = {name: told(directory_of(workdir, name)) for name in before}
    return {name: instruction for name, instruction in found.items() if instruction}


def claim(experiment: Experiment, workdir: Workdir, one: Rewrite) -> Any:
    """The directory of a rewrite. Raises InputError where another one of its name was made."""
    directory = directory_of(workdir, one.name)
    place, ours = directory / 'identity.json', identity(experiment, one)
    if isinstance(drafting.innermost(one.rewriter), Evolved):
        ours['instruction'] = instructions.best(workdir)  # of today: a search that goes on finds another
    if before := _instructions(experiment, workdir, one):
        ours['told'] = before
    with files.os_errors(StorageError, f'{directory} was not written'):
        files.make_private_dir(directory)
        with storage.setup(workdir):
            files.write_first(place, json.dumps(ours, indent=1).encode())
        theirs = read_identity(directory)
    if differences := diff(theirs, json.loads(json.dumps(ours))):
        raise InputError(
            f'{directory} holds another rewrite (theirs != ours): {"; ".join(differences)}; give this one another '
            'name, or give another workdir: students may have learned from the one that is there'
        )
    return directory


def check_models(directory: Any, experiment: Experiment, one: Rewrite) -> None:
    """Raises InputError where others than these began the rewrite: a stopped one goes on with the same."""
    needs, place = set(one.rewriter.needs), directory / 'models.json'
    used = {'teacher': experiment.teacher}
    if 'write' in needs and experiment.rewriter is not None:
        used['rewriter'] = experiment.rewriter
    if {'edit', 'harm'} & needs:
        used |= {f'proxy_{i}': source for i, source in enumerate(experiment.proxies)}
    ours = {name: loading.identify(source) for name, source in used.items()}
    with files.os_errors(StorageError, f'{place} was not written'):
        files.write_first(place, json.dumps(ours, indent=1).encode())
    theirs = read_object(place, (), StorageError, f'restore it, or delete {directory} and rewrite again')
    if differences := diff(theirs, ours):
        raise InputError(
            f'{directory} was begun with other weights (theirs != ours): {"; ".join(differences)}; restore them, or '
            'give this rewrite another name'
        )


def told(directory: Any) -> str:
    """What the writer of a rewrite is told, where a search has found it; '' else."""
    there = files.exists(directory / 'identity.json')
    return read_identity(directory).get('instruction', '') if there else ''


def read_identity(directory: Any) -> dict[str, Any]:
    fix = f'restore it, or delete {directory} and run --stages=rewrite again'
    record = read_object(directory / 'identity.json', ('rewrite',), StorageError, fix)
    of = record['rewrite'].get('of') if isinstance(record['rewrite'], dict) else None
    if not isinstance(of, str) or of == directory.name:
        raise StorageError(f'{directory / "identity.json"} is damaged (it is of {of!r}); {fix}')
    return record


def _checked(record: dict[str, Any], where: str) -> dict[str, Any]:
    """A journal's record. Raises StorageError where a field is missing or mistyped."""
    kinds: dict[str, Any] = {'text': str, 'accepted': int | None, 'refusals': list}
    kinds |= {'changed': float | None} if 'changed' in record else {}  # older ones do not say
    if record.get('accepted') is not None:
        kinds |= {'tokens': list, 'reasoning': str, 'answer': str}
    wrong = [name for name, kind in kinds.items() if name not in record or not isinstance(record[name], kind)]
    if wrong:
        raise StorageError(f'{where} is no rewrite (see {wrong}); restore the file or delete that line')
    return record


def from_record(record: dict[str, Any]) -> Rewritten:
    """What a record of a rewrite says became of its trace."""
    refusals, changed = tuple(record['refusals']), record.get('changed')
    return Rewritten(record['request_id'], record['text'], record['accepted'], refusals, changed=changed)


def originals(experiment: Experiment, workdir: Workdir, of: str) -> list[Trace]:
    """The traces of an arm, a selection or a rewrite, by request id. Raises InputError unless all are there; of a
    rewrite, whose shares several processes make, those that were made."""
    if of in names(workdir):
        return list(rewritten(workdir, of))
    if of in {one.name for one in experiment.selections}:
        made = of in workdir.selections()
        found = list(_there(workdir, of)) if made else []
        if not made or len(found) < len(workdir.selection(of)):
            raise InputError(f'selection {of!r} is not there, or traces of it are gone; run --stages=select first')
        return found
    found = list(_there(workdir, of))
    is_whole, there = watch.tally(workdir, of, {trace.request_id for trace in found})
    if not is_whole:
        raise InputError(f'arm {of!r} has {there}; finish --stages=generate first')
    return found


def names(workdir: Workdir) -> list[str]:
    """The rewrites that were begun in a workdir."""
    place = workdir.private / 'rewrites'
    return sorted(path.name for path in place.iterdir() if path.is_dir()) if place.exists() else []


def of_setting(workdir: Workdir, setting: str) -> Iterator[Trace]:
    """The traces of an arm, a selection or a rewrite that are there, under that name."""
    for trace in rewritten(workdir, setting) if setting in names(workdir) else _there(workdir, setting):
        id_ = RequestId.parse(trace.request_id)
        yield dataclasses.replace(trace, request_id=str(id_._replace(setting=setting)))


def _there(workdir: Workdir, setting: str) -> Iterator[Trace]:
    """The traces of an arm or a selection that are there, as they are."""
    is_selection = setting in workdir.selections()
    chosen = {record['request_id'] for record in workdir.selection(setting)} if is_selection else set[str]()
    for trace in workdir.traces():
        if trace.request_id in chosen if is_selection else RequestId.parse(trace.request_id).setting == setting:
            yield trace


def settings(workdir: Workdir) -> list[str]:
    """The arms of which there are traces, and the selections and rewrites that were begun."""
    arms = {RequestId.parse(trace.request_id).setting for trace in workdir.traces()}
    return sorted({*arms, *workdir.selections(), *names(workdir)})


def tally(workdir: Workdir, name: str) -> dict[str, Any]:
    """`drafting.counts` of a rewrite, of all that any process has made so far."""
    return drafting.counts([from_record(record) for record in records_of(directory_of(workdir, name)).values()])


def rewritten(workdir: Workdir, name: str) -> Iterator[Trace]:
    """The traces of a rewrite under its name, by request id; those that stayed as they were among them.

    Raises InputError where the originals of some are gone.
    """
    directory = directory_of(workdir, name)
    about, records = read_identity(directory)['rewrite'], records_of(directory)
    defence, found = {'type': 'rewrite', 'name': name, 'hash': content_hash(about)}, 0
    for trace in rewritten(workdir, about['of']) if about['of'] in names(workdir) else workdir.traces():
        if trace.request_id in records:
            found += 1
            id_, record = RequestId.parse(trace.request_id), records[trace.request_id]
            trace = dataclasses.replace(trace, request_id=str(id_._replace(setting=name)), defence=defence)
            yield trace if record['accepted'] is None else _said(trace, record)
    if found < len(records):
        raise InputError(f'{len(records) - found} traces of rewrite {name!r} are gone; restore the journals')


def records_of(directory: Any) -> dict[str, dict[str, Any]]:
    """Request id -> what any process has made of it."""
    return {record['request_id']: _checked(record, where) for where, record in read_records(directory)}


def _said(trace: Trace, record: dict[str, Any]) -> Trace:
    """What was recorded of the served distribution belongs to other words."""
    return dataclasses.replace(
        trace, text=record['text'], reasoning=record['reasoning'], answer=record['answer'],
        tokens=tuple(record['tokens']), statistics={}, stop='eos',
    )  # fmt: skip
