"""Compiles a run's programs while its weights are read: from shapes, into jax's cache.

A run that finds them there does not compile; it traces them once more. Nothing is gained without a cache, or on a CPU,
whose cores read the weights; and it is left out in one program across hosts, whose processes compile together, and with
rules that want derivatives, whose directions are laid out as they are read. On meshes that shard a model some program
is compiled again by the run (seen on 1x2x2): what XLA makes of its results' places is known only then.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import jax

from adx import checkpoints
from adx import experiment as experiments
from adx.decoding.ensemble import Ensemble, Group, Weights
from adx.experiment import Experiment
from adx.generation import Models, make_engines
from adx.loading import Blueprint
from adx.types import Request


@contextlib.contextmanager
def compiling(experiment: Experiment, plan: Blueprint, pending: Sequence[Request]) -> Iterator[None]:
    """Compiles in a thread what the requests need; leaves when both it and the body are done.

    What cannot be compiled is left to the run, which says why.
    """
    if not _gains() or jax.distributed.is_initialized() or experiments.wants_tangents(experiment):
        yield
        return
    thread = threading.Thread(target=_quietly, args=(experiment, plan, pending), daemon=True)
    thread.start()
    yield
    thread.join()


def _gains() -> bool:
    config: Any = jax.config
    cached = config.jax_enable_compilation_cache and config.jax_compilation_cache_dir
    return bool(cached) and jax.default_backend() != 'cpu'


def _quietly(experiment: Experiment, plan: Blueprint, pending: Sequence[Request]) -> None:
    with contextlib.suppress(Exception):
        compile_programs(experiment, plan, pending)


def compile_programs(experiment: Experiment, plan: Blueprint, pending: Sequence[Request]) -> None:
    """Every program that the requests need while the shortest caches hold them."""
    models = Models(plan.ensemble, abstract_weights(plan.ensemble), plan.tokenizer, {})
    wanted = {request.id.setting for request in pending}
    arms = [arm for arm in experiment.arms if arm.name in wanted]
    for engine, names in make_engines(models, arms, experiment.decode, experiment.seed, experiment.protected_spans):
        mine = [request for request in pending if request.id.setting in names]
        engine.compile(mine)


def abstract_weights(ensemble: Ensemble) -> Weights:
    """The shapes, dtypes and places of the weights of teacher and proxies, and of their directions."""

    def stacked(group: Group, paths: Sequence[str], lead: tuple[int, ...], letters: str) -> Any:
        alone = checkpoints.abstract_params(group.model, group.layout, group.model.config.dtype)
        return {
            path: jax.ShapeDtypeStruct(
                (*lead, *alone[path].shape),
                alone[path].dtype,
                sharding=group.layout.sharding(letters + group.model.axes[path]),
            )
            for path in paths
        }

    teacher: Any = checkpoints.abstract_params(
        ensemble.teacher, ensemble.teacher_layout, ensemble.teacher.config.dtype
    )
    groups = tuple(stacked(group, group.paths, (group.count,), 'N') for group in ensemble.groups)
    along = tuple(
        stacked(group, list(group.model.axes), (group.count, group.directions), 'NM')
        for group in ensemble.groups
        if group.directions
    )
    return Weights(teacher, groups, along)
