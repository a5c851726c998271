"""The traces that a study is about: of an arm, a selection or a rewrite."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

from adx import experiment as experiments
from adx import files, rewrites_io, storage, watch
from adx.errors import InputError
from adx.lessons import Lesson, from_trace
from adx.storage import Workdir
from adx.study import Study
from adx.types import RequestId, Trace


def seed_path(path: str, seed: int) -> str:
    """The workdir of one seed's traces."""
    return f'{path}/private/seeds/{seed}'


def read(study: Study, path: str, seed: int) -> dict[str, list[Trace]]:
    """Setting -> its traces of one seed, all samples of an arm. Raises InputError where some are missing, WorkdirError
    where they are of another experiment.
    """
    workdir = _open(study, path, seed)
    by_id = {trace.request_id: trace for trace in workdir.traces()}
    selections = [one.name for one in study.experiment.selections]
    made = _chosen(workdir, selections, by_id, seed) if selections else _by_arm(study, workdir, by_id.values(), seed)
    return made | _rewritten(study, workdir, made, seed)


def _open(study: Study, path: str, seed: int) -> Workdir:
    workdir = Workdir(seed_path(path, seed))
    if not files.exists(workdir.private / 'experiment.json'):
        return workdir  # nobody's: whoever reads it finds that traces are missing
    return storage.of_experiment(workdir.path, experiments.experiment_hash(study.of_seed(seed)))


def _rewritten(
    study: Study, workdir: Workdir, made: dict[str, list[Trace]], seed: int
) -> dict[str, list[Trace]]:
    found: dict[str, list[Trace]] = {}
    for one in study.experiment.rewrites:
        there, wanted = one.name in rewrites_io.names(workdir), len((made | found)[one.of])
        found[one.name] = list(rewrites_io.rewritten(workdir, one.name)) if there else []
        if len(found[one.name]) < wanted:
            raise InputError(
                f'seed {seed} has {len(found[one.name])} of {wanted} traces of rewrite {one.name!r}; run '
                '--stages=rewrite first'
            )
    return found


def _chosen(
    workdir: Workdir, selections: Sequence[str], by_id: Mapping[str, Trace], seed: int
) -> dict[str, list[Trace]]:
    chosen: dict[str, list[Trace]] = {}
    for name in selections:
        ids = [record['request_id'] for record in workdir.selection(name)] if name in workdir.selections() else []
        if not ids or not set(ids) <= set(by_id):
            raise InputError(f'seed {seed} has no selection {name!r} of its traces; run --stages=select first')
        chosen[name] = [by_id[id_] for id_ in ids]
    return chosen


def _by_arm(study: Study, workdir: Workdir, traces: Iterable[Trace], seed: int) -> dict[str, list[Trace]]:
    found: dict[str, list[Trace]] = {arm.name: [] for arm in study.experiment.arms}
    for trace in traces:
        found[RequestId.parse(trace.request_id).setting].append(trace)
    for name, mine in found.items():
        is_whole, there = watch.tally(workdir, name, {trace.request_id for trace in mine})
        if not is_whole:
            raise InputError(f'arm {name!r} of seed {seed} has {there}; finish --stages=generate first')
    return found


def one_each(traces: Iterable[Trace]) -> dict[str, Trace]:
    """'dataset/split/row' -> the first sample of its prompt that a setting has."""
    found: dict[str, Trace] = {}
    for trace in sorted(traces, key=lambda trace: RequestId.parse(trace.request_id).sample):
        found.setdefault(RequestId.parse(trace.request_id).prompt_id, trace)
    return found


def lessons(study: Study, path: str, seed: int) -> dict[str, list[Lesson]]:
    """Arm -> the traces of one seed. Raises InputError where some are missing."""
    return {
        arm: [_lesson(study, arm, trace) for trace in traces]
        for arm, traces in read(study, path, seed).items()
    }


def _lesson(study: Study, arm: str, trace: Trace) -> Lesson:
    """A selection leaves the thief one answer a prompt, whichever sample of its arm that was."""
    lesson = from_trace(trace, 'clean' if arm == study.clean else 'defended', knows_gold=True)
    if not study.experiment.selections:
        return lesson  # of rewrites of arms too: their samples are those of the arm
    id_ = RequestId.parse(trace.request_id)
    return dataclasses.replace(lesson, id=str(id_._replace(sample=0, setting=arm)))
