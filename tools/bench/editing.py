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

with F = 2 operations a weight and token. Nothing else may run meanwhile. --replicas: on a CPU a process with a core of
its own is the faster, so as many as there are cores share the traces, as the stage does by --shard and --num_shards.
Appends to results/editing.json, on an accelerator as figures of their own.
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
from adx.experiment import Experiment
from adx.models.products import linear
from adx.rewriters.gradient import Gradient
from adx.storage import Workdir
from adx.tails import Heads
from adx.workshop import Workshop
from launch.config import load_experiment
from tools.bench import cores, figures
from tools.bench.timers import timer

_CONFIG = flags.DEFINE_string('config', '', 'Has a rewrite by flips for harm; the first is timed.', allow_override=True)
_WORKDIR = flags.DEFINE_string('workdir', '', 'Of finished traces.', allow_override=True)
_COUNT = flags.DEFINE_integer('count', 256, 'Traces of a repeat.', lower_bound=1, allow_override=True)
_REPEATS = flags.DEFINE_integer('repeats', 5, 'After one that compiles.', lower_bound=1, allow_override=True)
_NAME = flags.DEFINE_string('name', 'testbed', 'Of the models, in the names of figures.', allow_override=True)
_REPLICAS = flags.DEFINE_integer('replicas', 1, 'Processes that share the traces, each with a core.', lower_bound=1)
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


class Bench:
    """A search that is warm, over every `of`-th of a run's traces."""

    def __init__(self, first: int = 0, of: int = 1):
        experiment, settings = _searched()
        shop = Workshop(experiment, _WORKDIR.value)
        plain = [one for one in Workdir(_WORKDIR.value).traces() if one.defence['type'] == 'undefended']
        self._traces, self._settings = plain[: _COUNT.value][first::of], settings
        ensemble = shop.plan.ensemble
        self._meter = Meter(weights_in_products(ensemble.teacher), _of_all(ensemble))
        self._dtype, self._edit = ensemble.teacher.config.dtype, shop.tools.need('edit', 'the bench')
        self._edit(self._traces, settings)
        self._meter.watch(shop._editor(settings))

    def __call__(self) -> dict[str, float]:
        """Traces, the seconds and operations that they took, and how many of these a second a product makes."""
        self._meter.operations, began = 0.0, time.perf_counter()
        self._edit(self._traces, self._settings)
        seconds = time.perf_counter() - began
        operations = self._meter.operations
        return {
            'traces': len(self._traces), 'seconds': seconds, 'operations': operations, 'rate': rate(self._dtype)
        }  # fmt: skip


def _searched() -> tuple[Experiment, Gradient]:
    """The experiment, and the first of its searches whose passes are counted here."""
    experiment = load_experiment(_CONFIG.value)
    searches = [one.rewriter for one in experiment.rewrites if isinstance(one.rewriter, Gradient)]
    settings = next((one for one in searches if (one.objective, one.step) == ('harm', 'flip')), None)
    if settings is None:
        raise ConfigError(f"{_CONFIG.value} has no rewrite by Gradient('harm', 'flip'), whose passes are counted here")
    return experiment, settings


def joined(done: Sequence[dict[str, float]]) -> tuple[float, float]:
    """Traces a second, and the share of the arithmetic, of processes that worked at once until the slowest ended."""
    seconds = max(one['seconds'] for one in done)
    could = seconds * sum(one['rate'] for one in done)
    return sum(one['traces'] for one in done) / seconds, sum(one['operations'] for one in done) / could


def measured(replicas: int) -> list[tuple[float, float]]:
    """Every repeat, see `joined`."""
    if replicas == 1:
        bench = Bench()
        return [joined([bench()]) for _ in range(_REPEATS.value)]
    command = ('-m', 'tools.bench.editing', *(_told(_WORKDIR.value)), f'--replicas={replicas}')
    with cores.started([command] * replicas) as started:
        return [joined(cores.at_once(started)) for _ in range(_REPEATS.value)]


def _told(workdir: str) -> list[str]:
    """The flags of this program; what is measured does not depend on where the traces are kept."""
    flags_of = {'config': _CONFIG.value, 'workdir': workdir, 'name': _NAME.value, 'count': _COUNT.value}
    return [f'--{name}={value}' for name, value in flags_of.items()]


def main(argv: Sequence[str]) -> None:
    del argv
    replicas = _REPLICAS.value
    if cores.WORKER.value is not None:
        return cores.serve(Bench(cores.WORKER.value, replicas))
    speeds, shares = zip(*measured(replicas), strict=True)
    command = f'python -m tools.bench.editing {" ".join(_told("DIR"))} --repeats={_REPEATS.value}'
    keep(_NAME.value, speeds, shares, command + (f' --replicas={replicas}' if replicas > 1 else ''))
    print(f'{jax.device_count()} devices, {_COUNT.value} traces')


if __name__ == '__main__':
    app.run(main)
