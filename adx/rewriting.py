"""The stage `rewrite`: says traces otherwise, through gates, and keeps what became of each.

    private/rewrites/<name>/identity.json   what the rewrite belongs to, written first
    private/rewrites/<name>/*.jsonl         journals: one line a trace, saved batch by batch

Any number of processes may share the traces, each with a lock and journals of its own; readers read all journals.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from adx import drafting, environments, files, instructions, keys, storage, watch
from adx import experiment as experiments
from adx.datasets.chat import encode_conversation, split_reasoning
from adx.drafting import Rewrite, Rewritten
from adx.errors import ConfigError, InputError, StorageError
from adx.experiment import Experiment, to_json
from adx.hashing import content_hash, row_key
from adx.journal import FORMAT_VERSION, Journal, cut_torn_tails, diff, read_object, read_records
from adx.journal import to_json as to_line
from adx.lessons import question
from adx.policy import spares
from adx.processes import ALONE, Place
from adx.reporting.slices import inside
from adx.rewriters.evolved import Evolved
from adx.rewriters.marked import Marked
from adx.storage import Workdir
from adx.types import RequestId, Trace
from adx.workshop import Workshop

BATCH = 64  # traces that are rewritten together, and saved together, at first
SECONDS, LARGEST = 60.0, 1024  # later batches are of as many as take so long, which is what a stop may cost
NOT_CHOSEN, SPARED = 'not chosen', 'licence without a defence'
Tell = Callable[[str, int, int], None]  # name of the rewrite, traces done, of how many
Made = TypeVar('Made')


@dataclasses.dataclass(frozen=True)
class _Share:
    """What one process is to do of a rewrite. chosen: names of the traces that are rewritten; the others stay, those
    `spared` because their licence has no defence. like: by request id, the texts that a control is to match.
    instruction: the one that a search had found when the rewrite was begun; a search that goes on finds others.
    """

    rewrite: Rewrite
    traces: list[Trace]
    chosen: frozenset[str]
    spared: frozenset[str] = frozenset()
    like: Mapping[str, str] = dataclasses.field(default_factory=dict)
    instruction: str = ''


def rewrite(
    experiment: Experiment,
    path: str,
    tell: Tell = lambda name, done, total: None,
    guard: Callable[[], Any] = contextlib.nullcontext,
    place: Place = ALONE,
) -> dict[str, dict[str, Any]]:
    """Makes this process's share of every rewrite of the experiment: name -> `drafting.counts` of it.

    Stopped at any moment outside `guard` it goes on with the batch that it was at, also in another number of shares.
    Raises ConfigError, WorkdirError, also for an environment that the workdir does not know, and InputError for traces
    that are not complete or a workdir that holds another rewrite of the name.
    """
    experiments.check(experiment)
    if not experiment.rewrites:
        raise ConfigError('--stages=rewrite has nothing to do: rewrites is empty; add a Rewrite to it')
    workdir = storage.of_experiment(path, experiments.experiment_hash(experiment))
    shop, found = Workshop(experiment, path), {}
    with storage.held(workdir, 'rewrite', ['rewrites'], (place.shard, place.num_shards)) as owner:
        for one in experiment.rewrites:
            share = _share(experiment, workdir, one, place)  # of what the rewrites before it have made
            directory = _claim(experiment, workdir, one)
            share = dataclasses.replace(share, instruction=_told(directory))
            cut_torn_tails(directory, owner)
            known = _known(share, directory)
            if len(known) < len(share.traces):  # a complete rewrite may be looked at anywhere
                environments.enter(workdir, owner, environments.current(experiment.mesh), place.may_change)
            found[one.name] = _rewrite(share, known, Journal(directory, owner), shop, tell, guard)
    return found


def _share(experiment: Experiment, workdir: Workdir, one: Rewrite, place: Place) -> _Share:
    """Chosen among all traces of the slices and the customer that the rewrite is about, and dealt out by index in all,
    so that every process agrees, also on chains.
    """
    root = drafting.chain(experiment.rewrites, one.name)[-1].of
    first = originals(experiment, workdir, root)
    names = [_name(trace) for trace in first]
    is_inside = inside(experiment.dataset, [question(trace.messages) for trace in first], one.only)
    is_spared = spares(workdir.private / 'policies')
    spared = frozenset(name for name, trace in zip(names, first, strict=True) if is_spared(trace))
    whose = getattr(drafting.innermost(one.rewriter), 'customer', '')  # a mark is of this customer's traces alone
    foreign = {name for name, trace in zip(names, first, strict=True) if whose and trace.customer not in ('', whose)}
    open_ = [name for name, here in zip(names, is_inside, strict=True) if here and name not in spared | foreign]
    traces = first if root == one.of else originals(experiment, workdir, one.of)
    mine = set(names[place.shard :: place.num_shards])

    def draw(name: str) -> list[int]:
        return row_key(experiment.seed, f'rewrite/{one.name}/{name}').tolist()

    chosen = frozenset(sorted(open_, key=draw)[: int(one.share * len(open_))])
    share = [trace for trace in traces if _name(trace) in mine]
    like = _to_match(workdir, drafting.matched_to(one.rewriter), share)
    return _Share(one, share, chosen, spared, like)


def seconds_per_token(experiment: Experiment, path: str) -> dict[str, float]:
    """Seconds of the machine that each rewrite adds to a token of a trace: of one batch, when all is compiled.

    Saves nothing. Raises as `rewrite` does for traces that are not complete.
    """
    workdir = storage.of_experiment(path, experiments.experiment_hash(experiment))
    shop, found = Workshop(experiment, path), {}
    for one in experiment.rewrites:
        made = workdir.private / 'rewrites' / one.name
        share = dataclasses.replace(_share(experiment, workdir, one, ALONE), instruction=_told(made))
        batch = share.traces[:BATCH]
        _records(share, batch, shop)
        began = time.perf_counter()
        _records(share, batch, shop)
        found[one.name] = (time.perf_counter() - began) / sum(len(trace.tokens) for trace in batch)
    return found


def _name(trace: Trace) -> str:
    return RequestId.parse(trace.request_id).noise_name


def _known(share: _Share, directory: Any) -> dict[str, dict[str, Any]]:
    """The records of the traces that were made before, by any process."""
    mine = {trace.request_id for trace in share.traces}
    every = {record['request_id']: _checked(record, where) for where, record in read_records(directory)}
    return {id_: record for id_, record in every.items() if id_ in mine}


def _rewrite(
    share: _Share, known: dict[str, dict[str, Any]], journal: Journal, shop: Workshop, tell: Tell,
    guard: Callable[[], Any],
) -> dict[str, Any]:  # fmt: skip
    left = [trace for trace in share.traces if trace.request_id not in known]
    with contextlib.closing(journal):
        for records in in_batches(left, lambda batch: _records(share, batch, shop)):
            with guard():
                journal.append([to_line(record) for record in records])
            known |= {record['request_id']: record for record in records}
            tell(share.rewrite.name, len(known), len(share.traces))
    return drafting.counts([from_record(record) for record in known.values()])


def in_batches(traces: Sequence[Trace], make: Callable[[Sequence[Trace]], Made]) -> Iterator[Made]:
    """What is made of the traces, a batch at a time: BATCH at first, then as many as `next_batch` says."""
    left, count = traces, BATCH
    while left:
        batch, left, began = left[:count], left[count:], time.perf_counter()
        made = make(batch)
        count = next_batch(len(batch), time.perf_counter() - began)
        yield made


def next_batch(count: int, seconds: float) -> int:
    """How many traces come after `count` that took so long: at most four times as many, for programs may be compiled
    for them."""
    return max(1, min(LARGEST, 4 * count, int(count * SECONDS / max(seconds, 1e-9))))


def _records(share: _Share, traces: Sequence[Trace], shop: Workshop) -> list[dict[str, Any]]:
    """The journal's lines of some traces."""
    one, mine = share.rewrite, [trace for trace in traces if _name(trace) in share.chosen]
    like = lambda of, name: [share.like[trace.request_id] for trace in of]  # noqa: E731
    instruction = (lambda: share.instruction) if share.instruction else shop.tools.instruction
    tools = dataclasses.replace(shop.tools, like=like, instruction=instruction)
    done = drafting.rewrite(mine, one.rewriter, one.gates, tools, shop.senses, shop.nll)
    found = {each.request_id: each for each in done}
    results = (found.get(trace.request_id) or _left(share, trace) for trace in traces)
    return [_record(shop.experiment, trace, each, shop) for trace, each in zip(traces, results, strict=True)]


def _to_match(workdir: Workdir, name: str, traces: Sequence[Trace]) -> dict[str, str]:
    """By request id, what a rewrite made of these traces; {} for no name. Raises InputError where it has not yet."""
    texts = {id_: record['text'] for id_, record in _records_of(workdir, name).items()} if name else {}
    missing = [trace.request_id for trace in traces if trace.request_id not in texts]
    if name and missing:
        raise InputError(f'rewrite {name!r}, which another is to match, has nothing of {missing[0]}; finish it first')
    return texts


def _left(share: _Share, trace: Trace) -> Rewritten:
    why = SPARED if _name(trace) in share.spared else NOT_CHOSEN
    return Rewritten(trace.request_id, trace.text, None, (why,))


def _record(experiment: Experiment, trace: Trace, result: Rewritten, shop: Workshop) -> dict[str, Any]:
    record = {'format_version': FORMAT_VERSION, 'policy': trace.policy} | dataclasses.asdict(result)
    if result.accepted is None:
        return record
    tokens = encode_conversation(trace.messages, result.text, shop.plan.tokenizer, experiment.prompting)[1]
    reasoning, answer = split_reasoning(result.text, experiment.prompting)
    return record | {'tokens': tokens, 'reasoning': reasoning, 'answer': answer}


def from_record(record: dict[str, Any]) -> Rewritten:
    """What a record of a rewrite says became of its trace."""
    refusals, changed = tuple(record['refusals']), record.get('changed')
    return Rewritten(record['request_id'], record['text'], record['accepted'], refusals, changed=changed)


def identity(experiment: Experiment, one: Rewrite) -> dict[str, Any]:
    """What a rewrite belongs to beside its workdir, JSON-able: itself and the rewrites that it is made of."""
    found = {'format_version': FORMAT_VERSION, **experiments.writer_identity(experiment), 'rewrite': to_json(one)}
    marked = drafting.innermost(one.rewriter)
    if isinstance(marked, Marked):
        found['key'] = keys.fingerprint(keys.served(marked.customer, marked.epoch))
    by_name = {each.name: each for each in experiment.rewrites}
    others = {'before': one.of, 'like': drafting.matched_to(one.rewriter)}
    return found | {role: identity(experiment, by_name[name]) for role, name in others.items() if name in by_name}


def _claim(experiment: Experiment, workdir: Workdir, one: Rewrite) -> Any:
    """The directory of a rewrite. Raises InputError where another one of its name was made."""
    directory = workdir.private / 'rewrites' / one.name
    place, ours = directory / 'identity.json', identity(experiment, one)
    if isinstance(drafting.innermost(one.rewriter), Evolved):
        ours['instruction'] = instructions.best(workdir)  # of today: a search that goes on finds another
    with files.os_errors(StorageError, f'{directory} was not written'):
        files.make_private_dir(directory)
        with storage.setup(workdir):
            files.write_first(place, json.dumps(ours, indent=1).encode())
        theirs = _read_identity(directory)
    if differences := diff(theirs, json.loads(json.dumps(ours))):
        raise InputError(
            f'{directory} holds another rewrite (theirs != ours): {"; ".join(differences)}; give this one another '
            'name, or give another workdir: students may have learned from the one that is there'
        )
    return directory


def _told(directory: Any) -> str:
    """What the writer of a rewrite is told, where a search has found it; '' else."""
    there = files.exists(directory / 'identity.json')
    return _read_identity(directory).get('instruction', '') if there else ''


def _read_identity(directory: Any) -> dict[str, Any]:
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


def originals(experiment: Experiment, workdir: Workdir, of: str) -> list[Trace]:
    """The traces of an arm, a selection or a rewrite, by request id. Raises InputError unless all are there; of a
    rewrite, whose shares several processes make, those that were made."""
    if of in names(workdir):
        return list(rewritten(workdir, of))
    if of in {one.name for one in experiment.selections}:
        made = of in workdir.selections()
        ids = {record['request_id'] for record in workdir.selection(of)} if made else set()
        found = [trace for trace in workdir.traces() if trace.request_id in ids]
        if not made or len(found) < len(ids):
            raise InputError(f'selection {of!r} is not there, or traces of it are gone; run --stages=select first')
        return found
    found = [trace for trace in workdir.traces() if RequestId.parse(trace.request_id).setting == of]
    is_whole, there = watch.tally(workdir, of, {trace.request_id for trace in found})
    if not is_whole:
        raise InputError(f'arm {of!r} has {there}; finish --stages=generate first')
    return found


def names(workdir: Workdir) -> list[str]:
    """The rewrites that were begun in a workdir."""
    place = workdir.private / 'rewrites'
    return sorted(path.name for path in place.iterdir() if path.is_dir()) if place.exists() else []


def tally(workdir: Workdir, name: str) -> dict[str, Any]:
    """`drafting.counts` of a rewrite, of all that any process has made so far."""
    return drafting.counts([from_record(record) for record in _records_of(workdir, name).values()])


def rewritten(workdir: Workdir, name: str) -> Iterator[Trace]:
    """The traces of a rewrite under its name, by request id; those that stayed as they were among them.

    Raises InputError where the originals of some are gone.
    """
    directory = workdir.private / 'rewrites' / name
    about = _read_identity(directory)['rewrite']
    records = _records_of(workdir, name)
    defence, found = {'type': 'rewrite', 'name': name, 'hash': content_hash(about)}, 0
    for trace in rewritten(workdir, about['of']) if about['of'] in names(workdir) else workdir.traces():
        if trace.request_id in records:
            found += 1
            id_, record = RequestId.parse(trace.request_id), records[trace.request_id]
            trace = dataclasses.replace(trace, request_id=str(id_._replace(setting=name)), defence=defence)
            yield trace if record['accepted'] is None else _said(trace, record)
    if found < len(records):
        raise InputError(f'{len(records) - found} traces of rewrite {name!r} are gone; restore the journals')


def _records_of(workdir: Workdir, name: str) -> dict[str, dict[str, Any]]:
    directory = workdir.private / 'rewrites' / name
    return {record['request_id']: _checked(record, where) for where, record in read_records(directory)}


def _said(trace: Trace, record: dict[str, Any]) -> Trace:
    """What was recorded of the served distribution belongs to other words."""
    return dataclasses.replace(
        trace, text=record['text'], reasoning=record['reasoning'], answer=record['answer'],
        tokens=tuple(record['tokens']), statistics={}, stop='eos',
    )  # fmt: skip
