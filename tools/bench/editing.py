"""Measures rewriting by gradient: its speed, and how near that is to its arithmetic.

    python -m tools.bench.editing --config=configs/testbed_edits.py --workdir=/data/edits/private/seeds/0
    python -m tools.bench.editing --config=configs/smollm2_rewrites.py --workdir=/data/smollm2 --count=8 --name=smollm2

--workdir: of a run with finished traces, and directions where the rewriter reads them. The bound counts multiplications
and additions with weights, of tokens that are none of the padding, at the rate of a large product in the same run:

    a forward pass of the teacher                                  1 F
    a pass of slopes of a proxy: the gradient by what is read,
      and its derivative along a direction of the weights          6 F
    a candidate under a proxy: a forward pass and its derivative   3 F
    a prompt under a proxy, once a pass for all its candidates     3 F, of what its keys and values are made of

with F = 2 operations a weight and token. Nothing else may run meanwhile. Appends to results/editing.json, on an
accelerator as figures of their own.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from adx.batching import Batch, ends
from adx.editing import Editor
from adx.errors import ConfigError
from adx.models.products import linear
from adx.rewriters.gradient import Gradient
from adx.storage import Workdir
from adx.tails import Heads
from adx.workshop import Workshop
from launch.config import load_config
from tools.bench import figures
from tools.bench.timers import timer

_CONFIG = flags.DEFINE_string('config', '', 'Has a rewrite by flips for harm; the first is timed.', allow_override=True)
_WORKDIR = flags.DEFINE_string('workdir', '', 'Of finished traces.', allow_override=True)
_COUNT = flags.DEFINE_integer('count', 256, 'Traces of a repeat.', lower_bound=1, allow_override=True)
_REPEATS = flags.DEFINE_integer('repeats', 5, 'After one that compiles.', lower_bound=1, allow_override=True)
_NAME = flags.DEFINE_string('name', 'testbed', 'Of the models, in the names of figures.', allow_override=True)
TABLE = 'editing'
SLOPE, FORWARD = 6, 3  # of a proxy, in forward passes' worth: with the derivative along a direction
SIDES = {'cpu': 1024, 'gpu': 8192}  # of the product that gives the rate
PER_SECOND, OF_BOUND = 'traces/s', 'of its arithmetic'
GOALS, SHARE = {'gradient_traces_per_second_testbed': '>= 20'}, '>= 0.5'


class Weights(NamedTuple):
    """How many meet each token: of a text whose next tokens are told, and of what stands before it."""

    tail: int
    head: int


@dataclasses.dataclass
class Meter:
    """Operations of products with weights, by what the editor was called with."""

    teacher: Weights
    proxies: Weights
    operations: float = 0.0

    def watch(self, editor: Editor) -> None:
        propose, values = editor._propose, editor._values

        def proposed(weights: Any, teacher: Any, tails: Batch, heads: Heads, editable_BL: Any) -> Any:
            self._add(self.teacher, tails, heads, 1, 1)
            self._add(self.proxies, tails, heads, SLOPE, FORWARD)
            return propose(weights, teacher, tails, heads, editable_BL)

        def valued(weights: Any, tails: Batch, heads: Heads) -> Any:
            self._add(self.proxies, tails, heads, FORWARD, FORWARD)
            return values(weights, tails, heads)

        editor._propose, editor._values = proposed, valued  # type: ignore[assignment]

    def _add(self, weights: Weights, tails: Batch, heads: Heads, each: int, before: int) -> None:
        in_tails, in_heads = _tokens(tails, heads)
        self.operations += 2 * (each * in_tails * weights.tail + before * in_heads * weights.head)


def _tokens(tails: Batch, heads: Heads) -> tuple[int, int]:
    """Of rows that have targets: up to the last of them, and of the heads that differ."""
    targets_BL = np.asarray(tails.targets_BL) > 0
    some_B = targets_BL.any(axis=1)
    _, firsts = np.unique(np.asarray(heads.of_B)[some_B], return_index=True)
    return int(np.sum(ends(targets_BL))), int(np.sum(np.asarray(heads.sizes_B)[some_B][firsts]))


def rate(dtype: str) -> float:
    """Operations a second of a large product, as precise as the models' are."""
    side = SIDES.get(jax.default_backend(), SIDES['gpu'])
    x = jnp.ones((side, side), dtype)
    seconds = timer(lambda x: linear('BD,FD->BF', x, x), x)
    return 2 * side**3 / float(np.median([seconds() for _ in range(7)]))


def weights_in_products(model: Any) -> Weights:
    """Of one token's forward pass: every matrix, and the embedding once, as the head; for keys and values alone the
    last block's.
    """
    sizes = {path: int(np.prod(shape)) for path, shape in model.shapes.items() if len(shape) > 1}
    last = f'blocks.{model.config.num_layers - 1}.'
    kept = (f'{last}attention.k', f'{last}attention.v')
    blocks = sum(n for path, n in sizes.items() if path.startswith('blocks.'))
    unread = sum(n for path, n in sizes.items() if path.startswith(last) and path not in kept)
    return Weights(sum(sizes.values()) - (0 if model.config.tied else sizes['embed']), blocks - unread)


def _of_all(ensemble: Any) -> Weights:
    """Of every proxy together."""
    pairs = [(group.count, weights_in_products(group.model)) for group in ensemble.groups]
    return Weights(*(sum(count * one[i] for count, one in pairs) for i in range(2)))


def keep(name: str, speeds: Sequence[float], shares: Sequence[float], command: str) -> None:
    """Of the models of that name: what was measured, and on a CPU what was not."""
    speed, share = f'gradient_traces_per_second_{name}', f'gradient_share_of_bound_{name}'
    on = '' if jax.default_backend() == 'cpu' else '_gpu'
    goals = {speed: GOALS.get(speed, ''), f'{share}{on}': SHARE}
    for figure, samples, unit in ((f'{speed}{on}', speeds, PER_SECOND), (f'{share}{on}', shares, OF_BOUND)):
        row = figures.append(TABLE, figure, samples, unit=unit, goal=goals.get(figure, ''), command=command)
        print(f'{figure}: {row["value"]:.3g} {unit} ({row["low"]:.3g} to {row["high"]:.3g}, n = {row["n"]})')
    for figure, unit, goal in ((speed, PER_SECOND, ''), (share, OF_BOUND, SHARE)):
        figures.not_run(TABLE, f'{figure}_gpu', unit=unit, goal=goal, command='', machine='GPU')


def main(argv: Sequence[str]) -> None:
    del argv
    loaded = load_config(_CONFIG.value)
    experiment = getattr(loaded, 'experiment', loaded)
    searches = [one.rewriter for one in experiment.rewrites if isinstance(one.rewriter, Gradient)]
    settings = next((one for one in searches if (one.objective, one.step) == ('harm', 'flip')), None)
    if settings is None:
        raise ConfigError(f"{_CONFIG.value} has no rewrite by Gradient('harm', 'flip'), whose passes are counted here")
    shop = Workshop(experiment, _WORKDIR.value)
    traces = [one for one in Workdir(_WORKDIR.value).traces() if one.defence['type'] == 'undefended'][: _COUNT.value]
    ensemble = shop.plan.ensemble
    meter = Meter(weights_in_products(ensemble.teacher), _of_all(ensemble))
    edit = shop.tools.need('edit', 'the bench')
    edit(traces, settings)
    meter.watch(shop._editor(settings))
    speeds, shares = [], []
    for _ in range(_REPEATS.value):
        meter.operations, began = 0.0, time.perf_counter()
        edit(traces, settings)
        seconds = time.perf_counter() - began
        speeds.append(len(traces) / seconds)
        shares.append(meter.operations / rate(ensemble.teacher.config.dtype) / seconds)
    command = (
        f'python -m tools.bench.editing --config={_CONFIG.value} --workdir=DIR --name={_NAME.value} '
        f'--count={_COUNT.value} --repeats={_REPEATS.value}'
    )
    keep(_NAME.value, speeds, shares, command)
    print(f'{jax.device_count()} devices, {len(traces)} traces')


if __name__ == '__main__':
    app.run(main)
