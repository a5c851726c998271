"""Measures how far two meshes agree: one device's trace, replayed on sharded models.

    python -m tools.bench.determinism

SmolLM2-135M-Instruct and its early exit, the models of configs/smollm2_poe.py, on GSM8K prompts, float32, product of
experts without truncation, eight CPU devices. One sample per mesh. Results: results/determinism.json, see figures.py.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import app

from adx import numerics
from adx.decoding.engine import DecodeConfig, Engine
from adx.decoding.ensemble import Ensemble, Weights
from adx.defences import ProductOfExperts
from adx.experiment import Arm, Experiment, MeshShape
from adx.generation import make_requests
from adx.hashing import row_key
from adx.loading import blueprint, load_models
from adx.mesh import Layout
from adx.models.transformer import Model
from adx.types import Array, Completion, Request, Sampling, Views
from configs import smollm2_poe
from tools.bench import figures

TABLE = 'determinism'
MESHES = ((1, 1, 2), (2, 1, 2), (2, 2, 2), (1, 1, 8))
ROWS, NEW = 8, 48


class Side(NamedTuple):
    """The models on one mesh."""

    ensemble: Ensemble
    weights: Weights


@dataclasses.dataclass(frozen=True)
class Agreement:
    """A trace of one mesh against its replay on another.

    difference: X, the largest difference of two logits, of the teacher or a proxy.
    draws: tokens of the trace. behind: of each that the other mesh would not have drawn, by how many logits its
      perturbed score was below the best one there. Each mesh errs by X at most, so it is below 2 X.
    share: the expected share of differing draws, over all noise.
    """

    difference: float
    draws: int
    behind: tuple[float, ...]
    share: float


def place(weights: Weights, ensemble: Ensemble) -> Side:
    """The same weights on the mesh of another ensemble."""

    def one(model: Model, layout: Layout, params: dict[str, Array], letter: str = '') -> dict[str, Array]:
        return {path: jax.device_put(x, layout.sharding(letter + model.axes[path])) for path, x in params.items()}

    stacks = zip(ensemble.groups, weights.groups, strict=True)
    groups = tuple(one(group.model, group.layout, params, 'N') for group, params in stacks)
    return Side(ensemble, Weights(one(ensemble.teacher, ensemble.teacher_layout, weights.teacher), groups))


def decode(side: Side, requests: Sequence[Request], config: DecodeConfig) -> dict[str, Completion]:
    """The engine's traces on this mesh, by request id."""
    return {str(done.id): done for done in Engine(*side, config).generate(requests)}


def replay(made: Side, other: Side, requests: Sequence[Request], traces: Mapping[str, Completion]) -> Agreement:
    """Feeds the traces, token by token, to the decode steps of the mesh that made them and of another.

    The requests have one defence, without state, and one temperature, and do not truncate.
    """
    rows = [(*request.tokens, *traces[str(request.id)].tokens) for request in requests]
    first_B = np.array([len(request.tokens) - 1 for request in requests])  # where the first token was drawn
    last_B = np.array([len(tokens) - 1 for tokens in rows])
    score = jax.jit(functools.partial(scores, requests[0]))
    key_B = jax.random.wrap_key_data(jnp.stack([row_key(0, request.id.noise_name) for request in requests]))
    difference, behind, shares = 0.0, [], []
    for position, pair in enumerate(zip(forced(made, rows), forced(other, rows), strict=True)):
        live_B = (first_B <= position) & (position < last_B)
        apart = [np.abs(x - y)[..., live_B, :].max(initial=0) for x, y in zip(*pair, strict=True)]
        difference = max(difference, *map(float, apart))
        (p_BV, _), (q_BV, perturbed_BV) = (map(np.asarray, score(key_B, position, *logits)) for logits in pair)
        for b in np.flatnonzero(live_B).tolist():
            lost = float(perturbed_BV[b].max() - perturbed_BV[b, rows[b][position + 1]])
            behind += [float(requests[b].sampling.temperature) * lost] if lost else []
            shares.append(flip_probability(p_BV[b], q_BV[b]))
    return Agreement(difference, len(shares), tuple(behind), float(np.mean(shares)))


def forced(side: Side, rows: Sequence[Sequence[int]]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Per position, the teacher's logits_BV and the proxies' logits_NBV after reading it; short rows read zeros."""
    length = max(map(len, rows))
    tokens_BL = np.stack([np.pad(tokens, (0, length - len(tokens))) for tokens in rows]).astype(np.int32)
    caches = jax.jit(lambda: side.ensemble.empty_caches(len(rows), length))()
    step = jax.jit(side.ensemble.step, donate_argnums=1)
    for position in range(length):
        positions_B = np.full(len(rows), position, np.int32)
        logits_BV, logits_NBV, _, caches = step(side.weights, caches, tokens_BL[:, position], positions_B)
        yield np.asarray(logits_BV), np.asarray(logits_NBV)


def scores(request: Request, key_B: Array, position: Array, logits_BV: Array, logits_NBV: Array):
    """Served log-probs_BV under the request's defence, and the same plus the rows' noise at `position`."""
    defence, temperature = request.defence, request.sampling.temperature

    def one(key: Array, teacher_V: Array, proxies_NV: Array) -> tuple[Array, Array]:
        teacher_V, proxies_NV = (numerics.log_softmax(logits / temperature) for logits in (teacher_V, proxies_NV))
        allowed_V = jnp.ones_like(teacher_V, bool)
        about = allowed_V, jnp.float32(temperature), jnp.int32(0), position, key, jnp.float32(1)
        views = Views(teacher_V, proxies_NV, *about)
        served_V = numerics.renormalise(defence.adjust(views, defence.init())[0], allowed_V)
        return served_V, served_V + numerics.gumbel(jax.random.fold_in(key, position), allowed_V.size)

    return jax.vmap(one, in_axes=(0, 0, 1))(key_B, logits_BV, logits_NBV)


def flip_probability(p_V: np.ndarray, q_V: np.ndarray) -> float:
    """How likely two close distributions (log-probs) draw different tokens from the same Gumbel noise.

    They agree with probability sum_v p_v / (1 + sum_w p_w (r_w / r_v - 1)_+), r = q / p. To first order the rest is
    half the mean difference of log r under p, which sorting gives.
    """
    log_ratio_V = q_V.astype(np.float64) - p_V
    order = np.argsort(log_ratio_V)
    mass_V = np.exp(p_V.astype(np.float64))[order]
    mass_V /= mass_V.sum()
    return float(np.sum(mass_V * log_ratio_V[order] * (2 * np.cumsum(mass_V) - mass_V - 1)))


def make_experiment(mesh: tuple[int, int, int]) -> Experiment:
    base = smollm2_poe.experiment()
    arm = Arm('product_of_experts', ProductOfExperts(gamma=0.3), Sampling(temperature=0.7))
    decode = dataclasses.replace(base.decode, slots=ROWS, prefill_rows=ROWS)
    return dataclasses.replace(base, arms=(arm,), max_new_tokens=NEW, decode=decode, mesh=MeshShape(*mesh))


def compare(meshes: Sequence[tuple[int, int, int]]) -> Iterator[Agreement]:
    """The ROWS shortest prompts of the shipped sample, decoded on one device and replayed on each mesh."""
    experiment = make_experiment((1, 1, 1))
    models = load_models(experiment, blueprint(experiment))
    prompts = experiment.dataset.prompts(experiment.split)
    found = make_requests(experiment, prompts, models.tokenizer).requests.values()
    requests = sorted(found, key=lambda request: len(request.tokens))[:ROWS]
    made = Side(models.ensemble, models.weights)
    traces = decode(made, requests, experiment.decode)
    for mesh in meshes:
        other = place(models.weights, blueprint(make_experiment(mesh)).ensemble)
        yield replay(made, other, requests, traces)


def main(argv: Sequence[str]) -> None:
    del argv
    jax.config.update('jax_num_cpu_devices', 8)
    results = []
    for mesh, result in zip(MESHES, compare(MESHES), strict=True):
        print(mesh, result, flush=True)
        results.append(result)
    command = ' '.join(['python -m tools.bench.determinism', *sys.argv[1:]])
    add = functools.partial(figures.append, TABLE, command=command)
    differences = [result.difference for result in results]
    add('max_abs_logit_difference_across_meshes', differences, unit='logits', goal='<= 2e-4')
    counted = [len(result.behind) / result.draws for result in results]
    add('diverging_token_share_across_meshes', [result.share for result in results], unit='of tokens', goal='<= 1e-5')
    add('diverging_tokens_counted', counted, unit='of tokens', goal='')


if __name__ == '__main__':
    app.run(main)
