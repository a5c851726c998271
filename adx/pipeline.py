"""The stage `generate`: decodes the traces that a workdir lacks, and saves them."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax

from adx import (
    ahead,
    directions,
    environments,
    files,
    fitting,
    forgetting,
    generation,
    loading,
    needs,
    processes,
    readings,
)
from adx import experiment as experiments
from adx.errors import COMPLETE, REJECTED_ROWS, AdxError
from adx.experiment import Experiment
from adx.hashing import content_hash
from adx.processes import Place
from adx.storage import Workdir, WorkdirWriter
from adx.types import POISONED, Request, Trace

FLUSH_SECONDS = 2.0
BEAT_SECONDS = 30.0
STORE_FLUSH_SECONDS = 10.0  # each flush is an object, and all of them are read again at every start
NOT_FINITE = 'the teacher gave nan or inf after {} tokens; mend its checkpoint, or try dtype float32'


@dataclasses.dataclass
class Report:
    """How far a run is. Times in seconds since generation began; counts are of this process.

    left_out: what the data did without, see `generation.left_out`. terms: licence -> traces under a policy, also those
    that were there. fallbacks: tokens that were the teacher's because a proxy gave no finite numbers. changes: of the
    environment, as `environments.changes` says them. without_weights: as `loading.Blueprint` says it.
    """

    total: int
    done_before: int
    rejected: int
    left_out: dict[str, Any]
    done: int = 0
    tokens: int = 0
    seconds: float = 0.0
    occupancy: float = 0.0
    fallbacks: int = 0
    changes: list[str] = dataclasses.field(default_factory=list)
    without_weights: tuple[str, ...] = ()
    stops: dict[str, int] = dataclasses.field(default_factory=collections.Counter)
    terms: dict[str, int] = dataclasses.field(default_factory=collections.Counter)

    def count(self, trace: Trace) -> None:
        """Takes in a trace that was decoded; one that is poisoned is rejected."""
        self.tokens += len(trace.tokens)
        if trace.stop == POISONED:
            self.rejected += 1
            return
        self.done += 1
        self.stops[trace.stop] += 1
        if trace.terms:
            self.terms[trace.terms] += 1
        self.fallbacks += sum(trace.statistics.get('fallback', ()))

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds if self.seconds else 0.0

    @property
    def seconds_left(self) -> float | None:
        """At the rate so far; None before the first trace."""
        left = self.total - self.done_before - self.rejected - self.done
        return left * self.seconds / self.done if self.done else None

    @property
    def exit_code(self) -> int:
        return REJECTED_ROWS if self.rejected else COMPLETE


Progress = Callable[[Report, Trace | None], None]  # called after every trace, and at the start with None
Guard = Callable[[], Any]  # a context manager inside which no interruption is raised


@dataclasses.dataclass(frozen=True)
class _Job:
    """What this process is to do. totals: setting -> number of requests of the whole run, all shares."""

    plan: loading.Blueprint
    made: generation.Requests
    totals: dict[str, int]
    left_out: dict[str, Any]


def generate(experiment: Experiment, path: str, place: Place, progress: Progress, guard: Guard) -> Report:
    """Decodes this process's share of what is not finished yet into the workdir's journal.

    Interruptions may be raised anywhere outside `guard`: finished traces are flushed and the next call goes on.
    Raises AdxError before any work for a config, input or workdir that cannot be run.
    """
    job = processes.together(lambda: _prepare(experiment, path, place))
    made = job.made
    processes.check_same('requests', lambda: _digest(experiment, made))
    with contextlib.ExitStack() as stack:
        workdir, opened = processes.together(lambda: _open(experiment, path, place, made, stack))
        # Only the process that writes needs to see the workdir.
        left, total, rejected, terms = json.loads(processes.gather(json.dumps(opened))[0])
        pending = [made.requests[id_] for id_ in left]
        report = Report(total, total - rejected - len(pending), rejected, job.left_out)
        report.terms.update(terms)
        report.without_weights = job.plan.without_weights
        stack.enter_context(processes.ending_together())
        traces = _traces(experiment, path, job, pending, report)
        if workdir is None:
            collections.deque(traces, maxlen=0)
            return report
        report.changes = environments.changes(workdir)
        saver = _Saver(workdir, report, job.totals, progress, guard)
        progress(report, None)
        with saver.beating():
            try:
                for trace in traces:
                    saver.add(trace)
            finally:
                saver.flush()
    return report


def _prepare(experiment: Experiment, path: str, place: Place) -> _Job:
    """Everything that can be refused before weights are read or anything is written."""
    experiments.check(experiment)
    if experiment.split == 'test' and place.writes:
        readings.read_test(path, experiments.experiment_hash(experiment), 'generate')
    if experiments.wants_tangents(experiment):
        directions.check_prepared(experiment, path)
    plan = loading.blueprint(experiment)
    loading.check_window(experiment, plan)
    prompts = generation.read_prompts(experiment)
    totals = {arm.name: len(prompts) * experiment.samples for arm in experiment.arms}
    mine = prompts[place.shard :: place.num_shards]
    made = generation.make_requests(experiment, mine, plan.tokenizer)
    return _Job(plan, made, totals, generation.left_out(experiment) if place.writes else {})


def _open(
    experiment: Experiment, path: str, place: Place, made: generation.Requests, stack: contextlib.ExitStack
) -> tuple[WorkdirWriter | None, tuple[list[str], int, int, dict[str, int]]]:
    """The workdir, closed with `stack`, the requests not finished in it, how many there are and are rejected but for
    forgotten ones, and those finished by licence; nothing of that on a process that does not write.

    Records the policy and the rejected rows.
    """
    if not place.writes:
        return None, ([], 0, 0, {})
    identity, digest = experiments.identity(experiment), experiments.experiment_hash(experiment)
    workdir = stack.enter_context(Workdir.open(path, identity, digest, place.shard, place.num_shards))
    policy = experiments.policy_hash(experiment)
    if experiment.policy is not None:
        workdir.keep_policy(policy, experiments.to_json(experiment.policy))
    known, is_forgotten = workdir.rejected(), forgetting.is_forgotten(workdir)
    there = [id_ for id_ in made.prompts if not is_forgotten(id_)]
    rejected = [id_ for id_ in there if id_ in made.rejected]
    for id_ in rejected:
        if known.get(id_) != made.rejected[id_]:
            workdir.reject(id_, made.rejected[id_], policy)
    licences = workdir.licences()
    left = [id_ for id_ in there if id_ in made.requests and id_ not in licences]
    terms = collections.Counter(filter(None, (licences.get(id_) for id_ in there)))
    if left:  # a complete run may be looked at anywhere
        environments.enter(workdir, workdir.owner, environments.current(experiment.mesh), place.may_change)
    return workdir, (left, len(there), len(rejected), terms)


def _digest(experiment: Experiment, made: generation.Requests) -> str:
    """Of what all processes of one program must agree on."""
    tokens = {id_: request.tokens for id_, request in made.requests.items()}
    return content_hash([experiments.to_json(experiment), tokens])


def _traces(
    experiment: Experiment, path: str, job: _Job, pending: Sequence[Request], report: Report
) -> Iterator[Trace]:
    """The traces of the pending requests, counted in the report. Weights are read only if there is one."""
    if not pending:
        return
    with fitting.explained(experiment, job.plan):
        with ahead.compiling(experiment, job.plan, pending):
            models = load_models(experiment, path, job.plan)
        processes.check_same('weights', lambda: json.dumps(models.hashes))
        began = time.monotonic()
        for engine, trace in generation.decode(experiment, models, job.made, pending):
            report.count(trace)
            report.occupancy = engine.occupancy.share
            report.seconds = time.monotonic() - began
            yield trace


def load_models(experiment: Experiment, path: str, plan: loading.Blueprint) -> generation.Models:
    """The models of a run in a workdir, with the directions in it where a rule wants derivatives: one a proxy where all
    rules take their mean."""
    models = loading.load_models(experiment, plan)
    if not experiments.wants_tangents(experiment):
        return models
    models = directions.load(experiment, path, plan, models)
    if models.ensemble.directions == 1 or not needs.one_direction(experiment):
        return models
    ensemble, weights = needs.summed(models.ensemble, models.weights)
    return dataclasses.replace(models, ensemble=ensemble, weights=weights)


class _Saver:
    """Collects traces and appends them to the journal every few seconds, with a heartbeat."""

    def __init__(
        self, workdir: WorkdirWriter, report: Report, totals: dict[str, int], progress: Progress, guard: Guard
    ):
        self.workdir, self.report, self.totals, self.progress, self.guard = workdir, report, totals, progress, guard
        self.waiting: list[Trace] = []
        self.every = STORE_FLUSH_SECONDS if files.is_object_store(workdir.path) else FLUSH_SECONDS
        self.flushed = time.monotonic()
        self.beat()

    def add(self, trace: Trace) -> None:
        if trace.stop == POISONED:
            with self.guard():
                self.workdir.reject(trace.request_id, NOT_FINITE.format(len(trace.tokens)), trace.policy)
        else:
            self.waiting.append(trace)
        self.progress(self.report, trace)
        if time.monotonic() - self.flushed > self.every:
            self.flush()

    def flush(self) -> None:
        with self.guard():
            if self.waiting:
                self.workdir.append(self.waiting)
                self.waiting = []
            self.beat()
            self.flushed = time.monotonic()

    @contextlib.contextmanager
    def beating(self) -> Iterator[None]:
        """Sends heartbeats also while nothing is finished: weights are read, programs compiled, long traces decoded."""
        ended = threading.Event()

        def beat() -> None:
            while not ended.wait(BEAT_SECONDS):
                with contextlib.suppress(AdxError):  # the next flush says so
                    self.beat()

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def beat(self) -> None:
        report = self.report
        self.workdir.heartbeat(
            {
                'totals': self.totals,
                'tokens_per_second': report.tokens_per_second,
                'seconds_left': report.seconds_left,
                'occupancy': report.occupancy,
                'backend': jax.default_backend(),
            }
        )
