"""The directions g of a run's proxies: taken on holdout traces, kept, handed to decoding.

    private/holdout/                a workdir of its own: the holdout traces of the undefended teacher
    private/directions/proxy_<i>/
      identity.json                 written last: what the directions belong to, and what is known of them
      params/                       Orbax, float32: each weight with a leading axis of directions

What is kept is the plain gradient; `attach` scales it and makes the two copies of method 'difference'.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from adx import experiment as experiments
from adx import files, generation, orbax_io
from adx.batching import Example
from adx.datasets.tokenizing import Tokenizer
from adx.decoding.derivative import difference_weights
from adx.decoding.ensemble import Group, Weights
from adx.errors import InputError, StorageError, malformed
from adx.experiment import Derivative, Experiment, to_json
from adx.generation import Models, Requests
from adx.gradients import Differentiator, Gradient, Tell, batches, deal, layer_norms
from adx.hashing import content_hash
from adx.journal import diff, read_object
from adx.loading import Blueprint
from adx.models.transformer import Params
from adx.needs import differentiated
from adx.storage import Workdir
from adx.texts import canonical
from adx.types import Array, Prompt, Trace

HOLDOUT, DIRECTIONS, IDENTITY = 'holdout', 'directions', 'identity.json'
FORMAT_VERSION = 1
NORM_TOLERANCE = 1e-3  # relative, between a norm as saved and as read: other meshes sum in another order
FIX = 'run --stages=prepare,generate'


@dataclasses.dataclass(frozen=True)
class Directions:
    """Of one proxy. params: float32, each [directions, ...]; deviations: one per direction; hash: what they are of."""

    params: Params
    deviations: tuple[float, ...]
    hash: str


def examples(traces: Iterable[Trace], made: Requests) -> list[Example]:
    """The traces of these requests as token ids. Raises InputError if there is none."""
    requests = made.requests
    found = [
        Example(trace.request_id, requests[trace.request_id].tokens, trace.tokens)
        for trace in traces
        if trace.request_id in requests and trace.tokens
    ]
    if not found:
        reason = next(iter(made.rejected.values()), 'none was decoded')
        raise InputError(
            f'no holdout trace has a completion ({reason}); directions need at least one: mend that, raise '
            'derivative.prompts or give the dataset more rows'
        )
    return found


def check_apart(holdout: Sequence[Prompt], served: Sequence[Prompt]) -> None:
    """Raises InputError if a prompt of the run is a holdout prompt as well, but for case and punctuation."""
    texts = {_text(prompt): prompt for prompt in holdout}
    both = [(prompt, texts[_text(prompt)]) for prompt in served if _text(prompt) in texts]
    if both:
        ours, theirs = (f'{prompt.split}/{prompt.row}' for prompt in both[0])
        raise InputError(
            f'{len(both)} prompts of the run are in the holdout split too, first {ours} as {theirs}; directions are '
            'taken on traces that are never served: take another split or mend the data'
        )


def _text(prompt: Prompt) -> str:
    text = '\n'.join(message['content'] for message in prompt.messages)
    return canonical(text)


def holdout_path(workdir: epath.PathLike) -> str:
    return str(Workdir(workdir).private / HOLDOUT)


def holdout_examples(experiment: Experiment, workdir: epath.PathLike, tokenizer: Tokenizer) -> list[Example]:
    """The finished holdout traces of a workdir. Raises InputError if there is none."""
    held = experiments.holdout(experiment)
    made = generation.make_requests(held, generation.read_prompts(held), tokenizer)
    return examples(Workdir(holdout_path(workdir)).traces(), made)


def differentiators(plan: Blueprint) -> Iterator[tuple[int, Differentiator]]:
    """The index of every proxy with what takes its gradient; proxies of one group share the programs."""
    mesh = plan.ensemble.teacher_layout.mesh
    for group, members in zip(plan.ensemble.groups, plan.members, strict=True):
        differentiator = Differentiator(group.model, mesh)
        yield from ((i, differentiator) for i in members)


def identity(experiment: Experiment, vocabulary: int, proxy: str, examples: Iterable[Example]) -> dict[str, Any]:
    """What the directions of a proxy belong to, JSON-able. vocabulary: tokens; proxy: its content hash."""
    return {
        'format_version': FORMAT_VERSION,
        'proxy': proxy,
        'traces': content_hash(sorted(examples)),
        'vocabulary': vocabulary,
        'dtype': experiment.dtype,
        'settings': to_json(experiment.derivative),
    }


def take(
    differentiator: Differentiator, params: Params, examples: Sequence[Example], count: int, name: str, tell: Tell
) -> list[Gradient]:
    """`count` gradients of the proxy `name`, each on its part of the examples. Raises InputError naming it."""
    if len(examples) < count:
        raise InputError(
            f'{len(examples)} holdout traces are too few for derivative.directions = {count}, each of which needs one; '
            'raise derivative.prompts or give the dataset more rows'
        )
    taken = []
    for part in deal(examples, count):
        taken.append(differentiator.take(params, batches(part, differentiator.rows), tell))
        check_norms(taken[-1].norms, name)
    return taken


def check_norms(norms: Mapping[str, float], name: str) -> None:
    """Raises InputError where a layer of the gradient of `name` is not finite or zero."""
    for layer, norm in norms.items():
        if not math.isfinite(norm) or norm == 0.0:
            raise InputError(
                f'{name}: the gradient of layer {layer} is {"zero" if norm == 0.0 else "not finite"} and no direction; '
                "check the proxy's weights and that its loss on the holdout traces is finite"
            )


def stack(differentiator: Differentiator, taken: Sequence[Gradient], identity: dict[str, Any]) -> Directions:
    """The gradients of one proxy on a leading axis."""
    axes, layout = differentiator.model.axes, differentiator.layout
    shardings = {path: layout.sharding('.' + axes[path]) for path in axes}
    join = jax.jit(lambda *gs: jax.tree.map(lambda *xs: jnp.stack(xs), *gs), out_shardings=shardings)
    deviations = tuple(one.deviation for one in taken)
    return Directions(join(*(one.params for one in taken)), deviations, content_hash(identity))


def place(workdir: epath.PathLike, index: int) -> epath.Path:
    """Where the directions of proxy `index` are."""
    return files.absolute(workdir) / 'private' / DIRECTIONS / f'proxy_{index}'


def known(directory: epath.Path, identity: dict[str, Any]) -> list[dict[str, Any]] | None:
    """What was saved there beside each direction, None if nothing was. Raises InputError if it is not of `identity`."""
    if not (directory / IDENTITY).exists():
        return None
    fix = f'delete {directory} and {FIX}'
    record = read_object(directory / IDENTITY, ('directions',), InputError, fix)
    differences = diff({name: record.get(name) for name in identity}, identity)
    if differences:
        raise InputError(
            f'{directory} holds directions of something else (theirs != ours): {"; ".join(differences)}; undo the '
            f'change, or delete it and {FIX}'
        )
    with malformed(f'{directory / IDENTITY} is damaged', fix):
        if not record['directions']:
            raise ValueError('it has none')
        return [_about(one) for one in record['directions']]


def _about(record: dict[str, Any]) -> dict[str, Any]:
    """What was saved beside a direction. Raises ValueError, TypeError or LookupError where that is not there."""
    norms = {str(layer): float(norm) for layer, norm in record['norms'].items()}
    return record | {'norms': norms, 'deviation': float(record['deviation'])}


def save(
    directory: epath.Path, directions: Directions, taken: Sequence[Gradient], identity: dict[str, Any], writes: bool
) -> None:
    """Saves from all processes; the one that `writes` puts the identity beside the arrays, last."""
    records = [{name: getattr(one, name) for name in ('tokens', 'loss', 'deviation', 'norms')} for one in taken]
    with files.os_errors(StorageError, f'{directory} was not written'):
        if writes:
            for path in (directory.parent, directory):
                files.make_private_dir(path)
        orbax_io.write_arrays(directory, directions.params)
        if writes:
            text = json.dumps(identity | {'directions': records}, indent=1)
            files.write_private(directory / IDENTITY, text.encode())


def restore(directory: epath.Path, differentiator: Differentiator, identity: dict[str, Any]) -> Directions:
    """The directions of `identity`, on the mesh. Raises InputError if they are missing, another's or damaged."""
    records = known(directory, identity)
    if records is None:
        raise InputError(f'{directory} has no directions and an arm wants derivatives; {FIX}')
    model, layout, count = differentiator.model, differentiator.layout, len(records)
    abstract = {
        path: jax.ShapeDtypeStruct((count, *shape), jnp.float32, sharding=layout.sharding('.' + model.axes[path]))
        for path, shape in model.shapes.items()
    }
    try:
        params = orbax_io.restore(directory, abstract)
    except InputError as error:  # whose fix is that of a checkpoint
        reason = str(error).rsplit('; ', 1)[0]
        raise InputError(f'{directory} is damaged ({reason}); delete it and {FIX}') from error
    for i, record in enumerate(records):
        norms = layer_norms({path: x[i] for path, x in params.items()})
        check_norms(norms, str(directory))
        for layer in sorted({*norms, *record['norms']}):
            norm, there = (found.get(layer, math.nan) for found in (record['norms'], norms))
            if not math.isclose(norm, there, rel_tol=NORM_TOLERANCE):
                raise InputError(
                    f'{directory} is damaged (layer {layer} has norm {there:.6g}, not {norm:.6g}); delete it and {FIX}'
                )
    return Directions(params, tuple(record['deviation'] for record in records), content_hash(identity))


def check_prepared(experiment: Experiment, workdir: epath.PathLike) -> None:
    """Raises InputError unless directions of every proxy are there, whatever they belong to."""
    missing = [f'proxy_{i}' for i in range(len(experiment.proxies)) if not (place(workdir, i) / IDENTITY).exists()]
    if missing:
        raise InputError(f'workdir {workdir} has no directions of {missing} and the run wants derivatives; {FIX}')


def hashes(experiment: Experiment, workdir: epath.PathLike) -> list[str]:
    """Of each proxy's directions as they are kept, its `Directions.hash`. Raises InputError where they are missing."""
    check_prepared(experiment, workdir)
    fix, found = f'delete {place(workdir, 0).parent} and {FIX}', []
    for i in range(len(experiment.proxies)):
        record = read_object(place(workdir, i) / IDENTITY, ('directions',), InputError, fix)
        found.append(content_hash({name: value for name, value in record.items() if name != 'directions'}))
    return found


def load(experiment: Experiment, workdir: epath.PathLike, plan: Blueprint, models: Models) -> Models:
    """The models with the directions that the workdir has for them. Raises InputError if it does not."""
    check_prepared(experiment, workdir)
    held = holdout_examples(experiment, workdir, plan.tokenizer)
    found = {}
    for i, differentiator in differentiators(plan):
        belongs = identity(experiment, plan.tokenizer.size, models.hashes[f'proxy_{i}'], held)
        found[i] = restore(place(workdir, i), differentiator, belongs)
    return attach(models, plan.members, found, experiment.derivative)


def member(models: Models, members: Sequence[Sequence[int]], index: int) -> Params:
    """The weights of proxy `index`, from the stack of its group."""
    ((params, n),) = [
        (params, indices.index(index))
        for params, indices in zip(models.weights.groups, members, strict=True)
        if index in indices
    ]
    return {path: x[n] for path, x in params.items()}


def attach(
    models: Models, members: Sequence[Sequence[int]], found: Mapping[int, Directions], derivative: Derivative
) -> Models:
    """The models with a direction for each proxy's derivatives; traces name their hashes as 'directions_<i>'.

    members: per group, the indices of its proxies; found: by index.
    """
    ensemble, weights, along = differentiated(models.ensemble, derivative), [], []
    for group, params, indices in zip(ensemble.groups, models.weights.groups, members, strict=True):
        g = _join(group, [found[i] for i in indices], derivative)
        params = {path: params[path] for path in group.paths}
        if derivative.method == 'difference':
            params, g = difference_weights(cast(params, derivative.dtype), g, derivative.eps)
        weights.append(params)
        along.append(g)
    return dataclasses.replace(
        models,
        ensemble=ensemble,
        weights=Weights(models.weights.teacher, tuple(weights), tuple(along)),
        hashes=models.hashes | {f'directions_{i}': directions.hash for i, directions in sorted(found.items())},
    )


def cast(params: Params, dtype: str) -> Params:
    """As checkpoints are loaded: norm scales stay float32."""
    return {path: x if path.endswith('.scale') else x.astype(dtype) for path, x in params.items()}


def _join(group: Group, mine: Sequence[Directions], derivative: Derivative) -> Params:
    """[N, M / N, ...] each: a group's directions, scaled; of the params' dtypes, or float32 to be added to them."""
    dtype = 'float32' if derivative.method == 'difference' else group.model.config.dtype
    scales = [one.deviations if derivative.scale == 'deviation' else (1.0,) * len(one.deviations) for one in mine]

    def join(path: str, gs: Sequence[Params]) -> Array:
        divisors = [np.reshape(np.array(scale, np.float32), (-1, *[1] * (gs[0][path].ndim - 1))) for scale in scales]
        scaled = [g[path] / divisor for g, divisor in zip(gs, divisors, strict=True)]
        return jnp.stack(scaled)

    shardings = {path: group.layout.sharding('N.' + letters) for path, letters in group.model.axes.items()}
    joined = jax.jit(lambda gs: cast({path: join(path, gs) for path in shardings}, dtype), out_shardings=shardings)
    return joined([one.params for one in mine])
