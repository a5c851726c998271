"""What fits into a device's memory by the plan: before a run, and when it has run out."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator, Sequence
from typing import Any

import jax

from adx import needs, planning
from adx.batching import bucket
from adx.drafting import innermost
from adx.editing import rows_at_once
from adx.errors import AdxError, ConfigError
from adx.experiment import Experiment
from adx.loading import Blueprint, blueprint, stored_config
from adx.mesh import make_mesh
from adx.models.transformer import Model, make_model
from adx.optimising import Recipe
from adx.planning import MemoryPlan
from adx.rewriters.gradient import Gradient
from adx.settings import MeshShape
from adx.study import Study
from adx.teaching import stack_size
from adx.training import Trainer

SIGNS = ('resource_exhausted', 'out of memory')  # in what XLA's compiler and its runtime say


def device_memory(device: Any) -> int | None:
    """Bytes that a device has; for a CPU the host's memory over its number of devices."""
    limit = (device.memory_stats() or {}).get('bytes_limit')
    if limit is None and device.platform == 'cpu':
        return os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') // len(jax.local_devices())
    return limit


def search_lines(experiment: Experiment, plan: Blueprint) -> list[str]:
    """What each search by gradient among the rewrites takes, for the longest trace that the run allows."""
    length, lines = bucket(experiment.decode.buckets[-1] + experiment.max_new_tokens), []
    rows = rows_at_once(length, plan.vocab_rows, plan.ensemble.teacher_layout.ways('B'))
    for one in experiment.rewrites:
        settings = innermost(one.rewriter)
        if isinstance(settings, Gradient):
            taken = planning.search_bytes(
                planning.members(plan.ensemble), settings.objective, (rows, length), settings.holdout
            )
            lines.append(f'rewrite {one.name}: {rows} x {length} tokens at once and {_size(taken)} on one device')
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


@contextlib.contextmanager
def training_explained(study: Study) -> Iterator[None]:
    """As `explained`, where students are trained: of their recipe and their mesh."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if not is_exhausted(error):
            raise
        limit, shape, recipe = device_memory(jax.local_devices()[0]), study.experiment.mesh, study.recipe
        models = [make_model(stored_config(one.source)) for one in study.students]
        raise ConfigError(
            f'a device has no memory left: the plan says {_size(_training(models, recipe, shape))} a device for '
            f'recipe.rows = {recipe.rows} in {recipe.accumulate} pieces of stacks of {stack_size()} students on the '
            f'mesh {shape.data}x{shape.proxy}x{shape.model}; what is graded is saved; '
            f'{training_proposal(models, recipe, shape, limit)}, or fewer experiment.decode.slots where it was grading'
        ) from error


def training_proposal(models: Sequence[Model], recipe: Recipe, shape: MeshShape, limit: int | None) -> str:
    """Smaller pieces of the rows, else a mesh that splits the models further, whose plan fits into `limit` bytes."""
    ways = shape.data * shape.proxy
    for accumulate in range(recipe.accumulate + 1, recipe.rows // ways + 1):
        if recipe.rows % accumulate == 0 and recipe.rows // accumulate % ways == 0:
            planned = _training(models, dataclasses.replace(recipe, accumulate=accumulate), shape)
            if limit is None or planned <= limit:
                return f'take --set=recipe.accumulate={accumulate} ({_size(planned)} a device)'
    model = 2 * shape.model
    while ways * model <= jax.device_count():
        planned = _training(models, recipe, dataclasses.replace(shape, model=model))
        if limit is None or planned <= limit:
            return f'take --set=experiment.mesh.model={model} ({_size(planned)} a device)'
        model *= 2
    return 'no piece of the rows and no mesh of these devices fits; take more devices, a smaller student or lora_rank'


def _training(models: Sequence[Model], recipe: Recipe, shape: MeshShape) -> int:
    """Bytes a device, of the neediest student in a full stack."""
    mesh = make_mesh(shape.data, shape.proxy, shape.model)
    return max(planning.training_bytes(Trainer(model, mesh, recipe, stack_size())) for model in models)


def _plan(experiment: Experiment, plan: Blueprint) -> MemoryPlan:
    return planning.plan_memory(needs.planned(plan.ensemble, experiment), experiment.decode)


def _fits(planned: MemoryPlan, limit: int | None) -> bool:
    return limit is None or planned.total <= limit


def _size(count: int) -> str:
    return f'{count / 2**30:.2f} GiB' if count >= 2**30 else f'{count / 2**20:.1f} MiB'
