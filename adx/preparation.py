"""The stage `prepare`: decodes holdout traces, and takes the proxies' directions on them."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable

from adx import directions, generation, loading, pipeline, processes
from adx import experiment as experiments
from adx.errors import ConfigError
from adx.experiment import Experiment
from adx.processes import Place
from adx.storage import Workdir

Tell = Callable[[str, int, int], None]  # 'proxy_<i>', how many passes over batches are done, of how many


def prepare(
    experiment: Experiment,
    path: str,
    place: Place,
    progress: pipeline.Progress,
    guard: pipeline.Guard,
    tell: Tell,
) -> pipeline.Report:
    """Decodes what is missing of the holdout traces, then takes and saves what is missing of the directions.

    Returns the report of the traces. All processes of one program must see the workdir.
    Raises AdxError before any work for what cannot be run, and InputError naming the proxy where no direction is found.
    """
    plan = processes.together(lambda: _plan(experiment, place))
    with contextlib.ExitStack() as stack:
        # Nobody decodes in the workdir meanwhile, and it is no other experiment's.
        processes.together(lambda: _hold(experiment, path, place, stack))
        report = pipeline.generate(
            experiments.holdout(experiment), directions.holdout_path(path), place, progress, guard
        )
        processes.wait()
        examples = processes.together(lambda: directions.holdout_examples(experiment, path, plan.tokenizer))
        stack.enter_context(processes.ending_together())
        for i, differentiator in directions.differentiators(plan):
            name, where = f'proxy_{i}', directions.place(path, i)
            proxy = loading.load_proxy(experiment, plan, i, differentiator.layout)
            identity = directions.identity(experiment, plan.tokenizer.size, proxy.identity, examples)
            processes.check_same(f'weights or holdout traces of {name}', functools.partial(str, identity))
            if processes.together(functools.partial(directions.known, where, identity)) is not None:
                continue
            taken = directions.take(
                differentiator, proxy.params, examples, experiment.derivative.directions, name,
                functools.partial(tell, name),
            )  # fmt: skip
            with guard():
                directions.save(where, directions.stack(differentiator, taken, identity), taken, identity, place.writes)
            processes.wait()
    return report


def decode_holdout(
    experiment: Experiment, path: str, place: Place, progress: pipeline.Progress, guard: pipeline.Guard
) -> pipeline.Report:
    """The first half of `prepare`, for who reads the holdout traces alone: attackers and curves of a study."""
    processes.together(lambda: _check_preparable(experiment, place))
    with contextlib.ExitStack() as stack:
        processes.together(lambda: _hold(experiment, path, place, stack))
        return pipeline.generate(
            experiments.holdout(experiment), directions.holdout_path(path), place, progress, guard
        )


def _plan(experiment: Experiment, place: Place) -> loading.Blueprint:
    """Everything that can be refused before anything is decoded."""
    experiments.check(experiment)
    if not experiments.wants_directions(experiment):
        names = [arm.name for arm in experiment.arms]
        raise ConfigError(
            f'--stages=prepare is for rules and selections that want derivatives; no arm of {names} does, leave it out'
        )
    _check_preparable(experiment, place)
    return loading.blueprint(experiment)


def _check_preparable(experiment: Experiment, place: Place) -> None:
    experiments.check(experiment)
    experiments.check_holdout(experiment)
    if place.num_shards > 1:
        raise ConfigError(
            f'--stages=prepare cannot be divided into {place.num_shards} shards: a direction is a mean over all '
            'holdout traces; run it in one process or with --distributed, and then --stages=generate in shards'
        )
    held = generation.read_prompts(experiments.holdout(experiment))
    directions.check_apart(held, experiment.dataset.prompts(experiment.split))


def _hold(experiment: Experiment, path: str, place: Place, stack: contextlib.ExitStack) -> None:
    """Takes the workdir, on the process that writes."""
    if place.writes:
        identity, digest = experiments.identity(experiment), experiments.experiment_hash(experiment)
        stack.enter_context(Workdir.open(path, identity, digest))
