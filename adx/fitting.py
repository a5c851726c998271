"""What fits into a device's memory by the plan: before a run, and when it has run out."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator
from typing import Any

import jax

from adx import needs, planning
from adx.editing import rows_at_once
from adx.errors import AdxError, ConfigError
from adx.experiment import Experiment
from adx.loading import Blueprint, blueprint
from adx.planning import MemoryPlan
from adx.rewriters.gradient import Gradient

SIGNS = ('resource_exhausted', 'out of memory')  # in what XLA's compiler and its runtime say


def device_memory(device: Any) -> int | None:
    """Bytes that a device has; for a CPU the host's memory over its number of devices."""
    limit = (device.memory_stats() or {}).get('bytes_limit')
    if limit is None and device.platform == 'cpu':
        return os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') // len(jax.local_devices())
    return limit


def search_lines(experiment: Experiment, plan: Blueprint) -> list[str]:
    """What each search by gradient among the rewrites takes, for the longest trace that the run allows."""
    length, lines = experiment.decode.buckets[-1] + experiment.max_new_tokens, []
    rows = rows_at_once(length, plan.vocab_rows)
    for one in experiment.rewrites:
        settings: Any = one.rewriter
        while not isinstance(settings, Gradient) and hasattr(settings, 'rewriter'):
            settings = settings.rewriter
        if isinstance(settings, Gradient):
            taken = planning.search_bytes(
                planning.members(plan.ensemble), settings.objective, (rows, length), settings.holdout
            )
            lines.append(f'rewrite {one.name}: {rows} x {length} tokens at once, {_size(taken)} on one device')
    return lines


def is_exhausted(error: BaseException) -> bool:
    """Whether devices or their compiler raised it for want of memory."""
    return isinstance(error, jax.errors.JaxRuntimeError) and any(sign in str(error).lower() for sign in SIGNS)


@contextlib.contextmanager
def explained(experiment: Experiment, plan: Blueprint) -> Iterator[None]:
    """Turns an error of the devices for want of memory into a ConfigError that proposes what fits."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if not is_exhausted(error):
            raise
        limit = device_memory(jax.local_devices()[0])
        raise ConfigError(f'{_state(experiment, plan, limit)}; {proposal(experiment, plan, limit)}') from error


def _state(experiment: Experiment, plan: Blueprint, limit: int | None) -> str:
    mesh, planned = experiment.mesh, _plan(experiment, plan)
    there = 'of unknown size' if limit is None else f'of {_size(limit)}'
    return (
        f'a device {there} has no memory left: the plan says {_size(planned.total)} a device for decode.slots = '
        f'{experiment.decode.slots} on the mesh {mesh.data}x{mesh.proxy}x{mesh.model}; finished traces are saved'
    )


def proposal(experiment: Experiment, plan: Blueprint, limit: int | None) -> str:
    """Fewer slots, else a mesh that splits the models further, whose plan fits into `limit` bytes a device.

    The plan that failed is known to be too small: fewer slots are proposed also where it says that they fit.
    """
    ways, slots = plan.ensemble.row_ways, experiment.decode.slots
    while (slots := slots // 2 // ways * ways) >= 2:
        fewer = dataclasses.replace(experiment, decode=dataclasses.replace(experiment.decode, slots=slots))
        if _fits(planned := _plan(fewer, plan), limit):
            return f'take --set=decode.slots={slots} ({_size(planned.total)} a device)'
    shape = experiment.mesh
    model = 2 * shape.model
    while shape.data * shape.proxy * model <= jax.device_count():
        wider = dataclasses.replace(experiment, mesh=dataclasses.replace(shape, model=model))
        with contextlib.suppress(AdxError):  # not every model can be split so often
            if _fits(planned := _plan(wider, blueprint(wider)), limit):
                return f'take --set=mesh.model={model} ({_size(planned.total)} a device)'
        model *= 2
    return "no batch and no mesh of these devices fits; take more devices, a smaller model or dtype = 'bfloat16'"


def _plan(experiment: Experiment, plan: Blueprint) -> MemoryPlan:
    return planning.plan_memory(needs.planned(plan.ensemble, experiment), experiment.decode)


def _fits(planned: MemoryPlan, limit: int | None) -> bool:
    return limit is None or planned.total <= limit


def _size(count: int) -> str:
    return f'{count / 2**30:.2f} GiB' if count >= 2**30 else f'{count / 2**20:.1f} MiB'
