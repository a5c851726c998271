"""The stage `rewrite`: says traces otherwise, through gates, and keeps what became of each.

What is written, batch by batch, is what rewrites_io.py reads. Any number of processes may share the traces, each with a
lock and journals of its own; readers read all journals.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from adx import drafting, environments, rewrites_io, storage
from adx import experiment as experiments
from adx.datasets.chat import encode_conversation, split_reasoning
from adx.drafting import Rewrite, Rewritten
from adx.errors import ConfigError, InputError
from adx.experiment import Experiment
from adx.hashing import row_key
from adx.journal import FORMAT_VERSION, Journal, cut_torn_tails
from adx.journal import to_json as to_line
from adx.lessons import question
from adx.policy import spares
from adx.processes import ALONE, Place
from adx.reporting.slices import inside
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
            directory = rewrites_io.claim(experiment, workdir, one)
            share = dataclasses.replace(share, instruction=rewrites_io.told(directory))
            cut_torn_tails(directory, owner)
            known = _known(share, directory)
            if len(known) < len(share.traces):  # a complete rewrite may be looked at anywhere
                rewrites_io.check_models(directory, experiment, one)
                environments.enter(workdir, owner, environments.current(experiment.mesh), place.may_change)
            found[one.name] = _rewrite(share, known, Journal(directory, owner), shop, tell, guard)
    return found


def _share(experiment: Experiment, workdir: Workdir, one: Rewrite, place: Place) -> _Share:
    """Chosen among all traces of the slices and the customer that the rewrite is about, and dealt out by index in all,
    so that every process agrees, also on chains.
    """
    root = drafting.chain(experiment.rewrites, one.name)[-1].of
    first = rewrites_io.originals(experiment, workdir, root)
    names = [_name(trace) for trace in first]
    is_inside = inside(experiment.dataset, [question(trace.messages) for trace in first], one.only)
    is_spared = spares(workdir.private / 'policies')
    spared = frozenset(name for name, trace in zip(names, first, strict=True) if is_spared(trace))
    whose = getattr(drafting.innermost(one.rewriter), 'customer', '')  # a mark is of this customer's traces alone
    foreign = {name for name, trace in zip(names, first, strict=True) if whose and trace.customer not in ('', whose)}
    open_ = [name for name, here in zip(names, is_inside, strict=True) if here and name not in spared | foreign]
    traces = first if root == one.of else rewrites_io.originals(experiment, workdir, one.of)
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
        made = rewrites_io.directory_of(workdir, one.name)
        share = dataclasses.replace(_share(experiment, workdir, one, ALONE), instruction=rewrites_io.told(made))
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
    return {id_: record for id_, record in rewrites_io.records_of(directory).items() if id_ in mine}


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
    return drafting.counts([rewrites_io.from_record(record) for record in known.values()])


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
    records = rewrites_io.records_of(rewrites_io.directory_of(workdir, name)) if name else {}
    texts = {id_: record['text'] for id_, record in records.items()}
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
