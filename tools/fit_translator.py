r"""Fits the affine translator of an early exit, in closed form.

An early exit keeps the first layers of a model; its hidden states are not what the final norm and head expect. The
translator maps them there: W, b minimise |h_exit W + b - h_last|^2 + ridge |W|^2 over the tokens of GSM8K text
(Belrose et al., arXiv 2303.08112, train theirs by KL; least squares needs one pass and no optimiser).

    python -m tools.fit_translator --source=smollm2-135m-instruct --exit_layer=10 \
        --out=adx/models/assets/smollm2_exit10.safetensors
    python -m tools.fit_translator --measure=smollm2_exit10 --below=150

Exit codes: 0 done, 2 flags, 3 input.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from adx import checkpoints
from adx.datasets import Gsm8k
from adx.datasets.rows import Row
from adx.datasets.tokenizing import Tokenizer, load_tokenizer
from adx.errors import InputError
from adx.loading import resolve, resolve_translator
from adx.models.transformer import Model, Params, make_model
from adx.numerics import log_softmax
from launch import program

LENGTH = 128  # tokens per window of text
ROWS = 8  # windows per forward pass

_SOURCE = flags.DEFINE_string('source', 'smollm2-135m-instruct', 'The model whose early exit is translated.')
_EXIT = flags.DEFINE_integer('exit_layer', 10, 'Layers that the early exit keeps.', lower_bound=1)
_DATA = flags.DEFINE_string('data', '', 'GSM8K directory; the shipped sample if empty.', allow_override=True)
_TOKENS = flags.DEFINE_integer('tokens', 12288, 'Training tokens.', lower_bound=LENGTH * ROWS)
_RIDGE = flags.DEFINE_float('ridge', 1e-3, 'Ridge, relative to the mean square of the exit states.', lower_bound=0.0)
_OUT = flags.DEFINE_string(
    'out', None, 'The safetensors file to write; only prints the perplexities if absent.', allow_override=True
)
_MEASURE = flags.DEFINE_string('measure', None, 'Fit nothing, print the perplexity of this translator.')
_BELOW = flags.DEFINE_float('below', None, 'Fails, and writes nothing, unless the early exit has less perplexity.')


def windows(rows: list[Row], tokenizer: Tokenizer) -> np.ndarray:
    """All the text of `rows` as windows [n, LENGTH] of token ids."""
    text = '\n\n'.join(f'{row.question}\n{row.answer}' for row in rows)
    ids = np.array(tokenizer.encode(text), np.int32)
    return ids[: len(ids) // LENGTH * LENGTH].reshape(-1, LENGTH)


def batches(tokens: np.ndarray) -> Iterator[np.ndarray]:
    for i in range(0, len(tokens) // ROWS * ROWS, ROWS):
        yield tokens[i : i + ROWS]


def fit(full: Model, early: Model, params: Params, tokens: np.ndarray, ridge: float) -> Params:
    """The translator's weight [D, D] and bias [D]: ridge regression on centred states, solved in float64."""
    positions = jnp.broadcast_to(jnp.arange(LENGTH), (ROWS, LENGTH))
    bare = make_model(dataclasses.replace(early.config, translator=False))

    @jax.jit
    def states(params: Params, batch: jax.Array) -> tuple[jax.Array, jax.Array]:
        x_BLD, _ = bare.apply({path: params[path] for path in bare.shapes}, batch, positions, method='hidden')
        y_BLD, _ = full.apply(params, batch, positions, method='hidden')
        return x_BLD, y_BLD

    pairs = [states(params, batch) for batch in batches(tokens)]
    x, y = (np.concatenate([np.asarray(p[i], np.float64).reshape(-1, p[i].shape[-1]) for p in pairs]) for i in (0, 1))
    x_mean, y_mean = x.mean(0), y.mean(0)
    xc = x - x_mean
    gram = xc.T @ xc + ridge * np.trace(xc.T @ xc) / xc.shape[1] * np.eye(xc.shape[1])
    weight = np.linalg.solve(gram, xc.T @ (y - y_mean))
    return {
        'translator': jnp.asarray(weight, jnp.float32),
        'translator_bias': jnp.asarray(y_mean - x_mean @ weight, jnp.float32),
    }


def perplexity(model: Model, params: Params, tokens: np.ndarray) -> float:
    """exp of the mean next-token NLL within the windows."""
    positions = jnp.broadcast_to(jnp.arange(LENGTH), (ROWS, LENGTH))

    @jax.jit
    def nll(params: Params, batch: jax.Array) -> jax.Array:
        log_probs_BLV = log_softmax(model.apply(params, batch, positions)[0])
        chosen = jnp.take_along_axis(log_probs_BLV[:, :-1], batch[:, 1:, None], axis=-1)
        return -jnp.mean(chosen)

    return float(np.exp(np.mean([float(nll(params, batch)) for batch in batches(tokens)])))


def check_below(found: float, below: float | None) -> None:
    """Raises InputError for a translator whose early exit is no language model: its perplexity is not `below`."""
    if below is not None and not found < below:
        raise InputError(f'perplexity {found:.1f} must be below {below:g}; fit the translator again on more --tokens')


def main() -> None:
    source = resolve(_SOURCE.value)
    loaded, tokenizer = checkpoints.load(source), load_tokenizer(source)
    full, params = loaded.model, loaded.params
    early = make_model(dataclasses.replace(full.config, num_layers=_EXIT.value, translator=True))
    data = Gsm8k(_DATA.value).source()
    test = windows(list(data.test.rows), tokenizer)[: 4 * ROWS]
    if _MEASURE.value:
        path = resolve_translator(_MEASURE.value)
        fitted = checkpoints.load(source, num_layers=_EXIT.value, translator=path).params
    else:
        train = windows(list(data.pool.rows), tokenizer)[: _TOKENS.value // LENGTH]
        fitted = params | fit(full, early, params, train, _RIDGE.value)
        print(f'fitted on {train.size} tokens of GSM8K')
    early_params = {path: fitted[path] for path in early.shapes}
    print(f'perplexities on {test.size} test tokens of GSM8K')
    print(f'perplexity of the full model {perplexity(full, params, test):.1f}')
    found = perplexity(early, early_params, test)
    print(f'perplexity of the early exit at layer {_EXIT.value} {found:.1f}')
    check_below(found, _BELOW.value)
    if _OUT.value:
        from safetensors.numpy import save_file

        names = ('translator', 'translator_bias')
        save_file({name: np.asarray(fitted[name]) for name in names}, _OUT.value)


if __name__ == '__main__':
    program.start(main)
