r"""How far the proxies' finite difference is from the derivative, by step and number format.

    python -m tools.precision --config=configs/smollm2_poe.py --eps=1e-1,1e-2,1e-3,1e-4 \
        --dtypes=float32,bfloat16,float16 --set=derivative.prompts=8 --set=derivative.max_new_tokens=64

It decodes holdout traces of the undefended teacher and takes g of every proxy on them, as --stages=prepare does, and
compares (log p(theta + eps g) - log p(theta - eps g)) / (2 eps), run in each format, with forward-mode differentiation
in float32. What a program may compute more precisely than its format says is rounded all the same. Columns:

    |sin|     of the angle between the two over the vocabulary, both centred under the proxy: mean over positions
    step      eps rms(g) / rms(theta): places settings of other models and other scales of g
    changed   share of the weights that theta + eps g moves, once both are cast

g has the scale of the config: --set=derivative.scale=raw leaves it as it is. Exit codes: 0 done, 2 flags, 3 input.
"""

from __future__ import annotations

import dataclasses
import functools
import re
import sys
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from adx import directions, loading, session
from adx.batching import Batch, Example, positions
from adx.errors import ConfigError
from adx.experiment import COPY_DTYPES, Derivative, Experiment, override
from adx.gradients import Differentiator, batches, centre, push
from adx.models.transformer import Model, Params, TransformerConfig, make_model
from adx.numerics import log_softmax
from launch import program
from launch.config import load_experiment
from tools.bench import figures

TABLE = 'derivative'

_CONFIG = flags.DEFINE_string(
    'config', None, 'A Python file that defines experiment(), or study(), whose experiment counts.', allow_override=True
)
_SET = flags.DEFINE_multi_string('set', [], 'Override a field of the config: path.to.field=value. May be repeated.')
_EPS = flags.DEFINE_list('eps', ['1e-1', '1e-2', '1e-3', '1e-4'], 'Steps along g.')
_DTYPES = flags.DEFINE_list('dtypes', list(COPY_DTYPES), 'Formats that the two copies are held and run in.')
_POSITIONS = flags.DEFINE_integer('positions', 128, 'Target positions that are compared, of all.', lower_bound=1)
_RECORD = flags.DEFINE_bool('record', False, f'Append the numbers to tools/bench/results/{TABLE}.json.')


@dataclasses.dataclass(frozen=True)
class Precision:
    """One row of the table; see the module's text."""

    proxy: str
    dtype: str
    eps: float
    sines: np.ndarray  # one per position
    step: float
    changed: float

    def __str__(self) -> str:
        sine = float(np.mean(self.sines))
        return f'{self.proxy}  {self.dtype:<8}  {self.eps:7.0e}  {sine:9.2e}  {self.step:9.2e}  {self.changed:7.1%}'

    def record(self) -> None:
        """Three figures, named after the row."""
        eps = next(text for text in (f'{self.eps:.0e}', repr(self.eps)) if float(text) == self.eps)
        name = re.sub(r'\W+', '_', f'{self.proxy} {self.dtype} {eps}'.lower().replace('e-', 'em'))
        command = ' '.join(['python -m tools.precision', *sys.argv[1:]])
        for figure, sample, unit in (
            ('sin', float(np.mean(self.sines)), 'sine'),
            ('step', self.step, 'rms over rms'),
            ('changed', self.changed, 'of the weights'),
        ):
            figures.append(TABLE, f'precision_{figure}_{name}', [sample], unit=unit, goal='', command=command)


def sines(exact: np.ndarray, other: np.ndarray) -> np.ndarray:
    """|sin| of the angle between rows [n, V], in float64; 1 where the other is zero, nan where it is not finite."""
    exact, other = exact.astype(np.float64), other.astype(np.float64)
    share = np.sum(exact * other, axis=-1, keepdims=True) / np.sum(exact**2, axis=-1, keepdims=True)
    # The length of what is across: 1 - cos^2 would lose angles below 1e-8.
    across, length = (np.linalg.norm(x, axis=-1) for x in (other - share * exact, other))
    return np.divide(across, length, out=np.ones_like(length), where=length != 0)


def move(params: Params, g: Params, eps: float, dtype: str) -> Params:
    """theta + eps g, added in float32 and then cast."""
    return directions.cast({path: x + eps * g[path] for path, x in params.items()}, dtype)


def share_changed(before: Params, after: Params) -> float:
    """Which share of all weights differ."""
    return sum(int(jnp.sum(x != after[path])) for path, x in before.items()) / sum(x.size for x in before.values())


def rms(params: Params) -> float:
    total = sum(float(jnp.sum(jnp.square(x.astype(jnp.float32)))) for x in params.values())
    return (total / sum(x.size for x in params.values())) ** 0.5


def choose(made: Sequence[Batch], count: int) -> list[tuple[Batch, tuple[np.ndarray, np.ndarray]]]:
    """The batches with `count` evenly spaced positions (rows, columns) that predict a target, of all."""
    places = [(i, row, column - 1) for i, batch in enumerate(made) for row, column in np.argwhere(batch.targets_BL)]
    chosen = np.array(places)[np.linspace(0, len(places) - 1, min(count, len(places))).astype(int)]
    by_batch = [(batch, tuple(chosen[chosen[:, 0] == i, 1:].T)) for i, batch in enumerate(made)]
    return [(batch, at) for batch, at in by_batch if len(at[0])]


class Comparison:
    """The exact derivative of one proxy at some positions, and what it is compared with.

    params, g: float32, on one device or a mesh.
    """

    def __init__(self, model: Model, params: Params, g: Params, made: Sequence[Batch], positions: int):
        self.model, self.params, self.g = model, params, g
        self.batches = choose(made, positions)

        @jax.jit
        def exact(params: Params, g: Params, batch: Batch, at: tuple[jax.Array, jax.Array]):
            logits_BLV, slopes_BLV = push(model, params, g, batch.tokens_BL)
            p_nV = jax.nn.softmax(logits_BLV[at], axis=-1)
            return p_nV, centre(p_nV, slopes_BLV[at])

        self.exact = [exact(params, g, *batch) for batch in self.batches]

    def sines(self, eps: float, dtype: str) -> np.ndarray:
        """|sin| at every position of the central difference of two copies in `dtype`."""
        plus, minus = (self._log_probs(move(self.params, self.g, step, dtype), dtype) for step in (eps, -eps))
        vocab = self.model.config.vocab_size  # padding has no log-prob
        found = []
        for (p_nV, exact_nV), x_nV, y_nV in zip(self.exact, plus, minus, strict=True):
            slopes_nV = centre(p_nV, (x_nV - y_nV) / (2 * eps))
            found.append(sines(np.asarray(exact_nV)[:, :vocab], np.asarray(slopes_nV)[:, :vocab]))
        return np.concatenate(found)

    def _log_probs(self, params: Params, dtype: str) -> list[jax.Array]:
        forward = _forward(dataclasses.replace(self.model.config, dtype=dtype))
        return [forward(params, *batch) for batch in self.batches]


@functools.cache
def _forward(config: TransformerConfig) -> Callable[..., jax.Array]:
    model = make_model(config)

    # Without it XLA may leave out casts to half precision and back, on CPU nearly all of them.
    @functools.partial(jax.jit, compiler_options={'xla_allow_excess_precision': False})
    def forward(params: Params, batch: Batch, at: tuple[jax.Array, jax.Array]) -> jax.Array:
        positions_BL = positions(batch.tokens_BL)
        x_BLD = model.apply(params, batch.tokens_BL, positions_BL, method='hidden')[0]
        return log_softmax(model.apply(params, x_BLD[at][None], method='unembed')[0])  # logits where they are read

    return forward


def compare(
    name: str, comparison: Comparison, steps: Sequence[float], dtypes: Sequence[str]
) -> Iterator[Precision]:
    """A row for every format and step."""
    relative = rms(comparison.g) / rms(comparison.params)
    for dtype in dtypes:
        theta = directions.cast(comparison.params, dtype)
        for eps in steps:
            changed = share_changed(theta, move(comparison.params, comparison.g, eps, dtype))
            yield Precision(name, dtype, eps, comparison.sines(eps, dtype), eps * relative, changed)


def comparisons(experiment: Experiment, positions: int) -> Iterator[tuple[str, Comparison]]:
    """Each proxy of the experiment by name, with its direction on holdout traces that are decoded here."""
    plan = loading.blueprint(experiment)
    models = loading.load_models(experiment, plan, whole=True)
    examples = session.decode_holdout(experiment, models)
    for i, differentiator in directions.differentiators(plan):
        params = differentiator.exact(directions.member(models, plan.members, i))
        g = direction(differentiator, params, examples, experiment.derivative, f'proxy_{i}')
        source = experiment.proxies[i]
        name = source.source.rstrip('/').rsplit('/', 1)[-1] + (f'_exit{source.exit_layer}' if source.exit_layer else '')
        made = batches(examples, differentiator.rows)
        yield name, Comparison(differentiator.model, params, g, made, positions)


def direction(
    differentiator: Differentiator, params: Params, examples: Sequence[Example], derivative: Derivative, name: str
) -> Params:
    """g with the scale of the config."""
    (taken,) = directions.take(differentiator, params, examples, 1, name, lambda done, total: None)
    norm = sum(x**2 for x in taken.norms.values()) ** 0.5
    print(
        f'{name}: loss {taken.loss:.3f} nats over {taken.tokens} tokens, norm of its gradient {norm:.3g}, deviation '
        f'along it {taken.deviation:.3g}, scale {derivative.scale!r}'
    )
    divisor = taken.deviation if derivative.scale == 'deviation' else 1.0
    return {path: x / divisor for path, x in taken.params.items()}


def main() -> None:
    if not _CONFIG.value:
        raise ConfigError('--config is needed; see configs/')
    experiment = override(load_experiment(_CONFIG.value), _SET.value)
    try:
        steps = [float(eps) for eps in _EPS.value]
    except ValueError as error:
        raise ConfigError(f'--eps={",".join(_EPS.value)} is not allowed; give numbers above 0') from error
    if unknown := [dtype for dtype in _DTYPES.value if dtype not in COPY_DTYPES]:
        raise ConfigError(f'--dtypes has {unknown}; they must be of {COPY_DTYPES}')
    if not experiment.proxies or min(steps, default=0.0) <= 0.0:
        raise ConfigError('there is nothing to compare; give --eps above 0 and a config with proxies')
    for name, comparison in comparisons(experiment, _POSITIONS.value):
        print(f'{"proxy":<{len(name)}}  {"dtype":<8}  {"eps":>7}  {"|sin|":>9}  {"step":>9}  changed')
        for row in compare(name, comparison, steps, _DTYPES.value):
            print(row, flush=True)
            if _RECORD.value:
                row.record()


if __name__ == '__main__':
    program.start(main)
