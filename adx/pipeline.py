"""Runs the stages of an experiment in a workdir: skips what is done, saves what stages yield."""

from __future__ import annotations

import collections
import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax

from adx import experiment as experiments
from adx import generation, loading
from adx.errors import COMPLETE, REJECTED_ROWS
from adx.experiment import Experiment
from adx.storage import Workdir, WorkdirWriter
from adx.types import Trace

FLUSH_SECONDS = 2.0


@dataclasses.dataclass(frozen=True)
class Place:
    """Which share of the requests this process takes; `writes` is False on all but one process of one program."""

    shard: int = 0
    num_shards: int = 1
    writes: bool = True


@dataclasses.dataclass
class Report:
    """How far a run is. Times in seconds since generation began; counts are of this process."""

    total: int
    done_before: int
    rejected: int
    done: int = 0
    tokens: int = 0
    seconds: float = 0.0
    occupancy: float = 0.0
    stops: dict[str, int] = dataclasses.field(default_factory=collections.Counter)

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


Progress = Callable[[Report, str], None]  # called after every trace with its request id, and at start with ''
Guard = Callable[[], Any]  # a context manager inside which no interruption is raised


def generate(
    experiment: Experiment, path: str, place: Place, progress: Progress, guard: Guard
) -> Report:
    """Decodes this process's share of what is not finished yet into the workdir's journal.

    Interruptions may be raised anywhere outside `guard`: finished traces are flushed and the next call goes on.
    Raises AdxError before any work for a config, input or workdir that cannot be run.
    """
    experiments.check(experiment)
    plan = loading.blueprint(experiment)
    prompts = experiment.dataset.prompts(experiment.split)[: experiment.limit or None]
    made = generation.make_requests(experiment, prompts, plan.tokenizer)
    if not place.writes:
        pending, report = _pending(Workdir(path), made, place)
        for _ in _completions(experiment, plan, pending, report):
            pass
        return report
    identity, digest = experiments.identity(experiment), experiments.experiment_hash(experiment)
    with Workdir.open(path, identity, digest, place.shard, place.num_shards) as workdir:
        pending, report = _pending(workdir, made, place)
        _reject(workdir, made, place)
        totals = collections.Counter(id_.rsplit('/', 1)[1] for id_ in made.prompts)
        saver = _Saver(workdir, report, dict(totals), progress, guard)
        progress(report, '')
        try:
            make_trace = None
            for models, engine, completion in _completions(experiment, plan, pending, report):
                make_trace = make_trace or generation.TraceMaker(experiment, models, made)
                report.occupancy = engine.occupancy.share
                saver.add(make_trace(completion))
        finally:
            saver.flush()
    return report


def _pending(workdir: Workdir, made: generation.Requests, place: Place):
    """This process's requests that no process has finished, and the report to fill in."""
    finished = workdir.finished()
    mine = list(made.prompts)[place.shard :: place.num_shards]
    pending = [made.requests[id_] for id_ in mine if id_ in made.requests and id_ not in finished]
    rejected = sum(id_ in made.rejected for id_ in mine)
    return pending, Report(len(mine), len(mine) - rejected - len(pending), rejected)


def _reject(workdir: WorkdirWriter, made: generation.Requests, place: Place) -> None:
    known = workdir.rejected()
    for id_ in list(made.prompts)[place.shard :: place.num_shards]:
        if id_ in made.rejected and known.get(id_) != made.rejected[id_]:
            workdir.reject(id_, made.rejected[id_])


def _completions(experiment: Experiment, plan: loading.Blueprint, pending: Sequence[Any], report: Report):
    """(models, engine, completion) of every pending request. Weights are read only if there is one."""
    if not pending:
        return
    models = loading.load_models(experiment, plan)
    names = {request.id.setting for request in pending}
    arms = [arm for arm in experiment.arms if arm.name in names]
    engines = generation.make_engines(models, arms, experiment.decode, experiment.seed)
    stop_fn = generation.make_stop_fn(experiment.stop_strings, models.tokenizer, experiment.decode.chunk)
    began = time.monotonic()
    for engine, completion in generation.generate(engines, pending, stop_fn):
        report.done += 1
        report.tokens += len(completion.tokens)
        report.stops[completion.stop] += 1
        report.seconds = time.monotonic() - began
        yield models, engine, completion


class _Saver:
    """Collects traces and appends them to the journal every FLUSH_SECONDS, with a heartbeat."""

    def __init__(
        self, workdir: WorkdirWriter, report: Report, totals: dict[str, int], progress: Progress, guard: Guard
    ):
        self.workdir, self.report, self.totals, self.progress, self.guard = workdir, report, totals, progress, guard
        self.waiting: list[Trace] = []
        self.flushed = time.monotonic()
        self.beat()

    def add(self, trace: Trace) -> None:
        self.waiting.append(trace)
        self.progress(self.report, trace.request_id)
        if time.monotonic() - self.flushed > FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        with self.guard():
            if self.waiting:
                self.workdir.append(self.waiting)
                self.waiting = []
            self.beat()
            self.flushed = time.monotonic()

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
