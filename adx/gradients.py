"""The gradient g of a proxy's loss over traces, and how far along it log-probs move.

A gradient is a float32 flat dict as params are. It belongs to the mean over all target tokens of all traces, so it
depends on how they are batched and on how many devices there are by rounding only: on tiny models by less than 1e-5
of its norm (tests/gradients_test.py).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Sequence

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from adx import batching, losses, pace
from adx.batching import Batch, Example
from adx.mesh import proxy_layout
from adx.models.transformer import Model, Params, make_model
from adx.types import Array

ROWS = 4  # of a batch, per piece of the mesh that rows are split into
_Sums = tuple[Params, Array, Array]  # gradient, NLL, number of targets
Tell = Callable[[int, int], None]  # how many batches are done, of how many


@dataclasses.dataclass(frozen=True)
class Gradient:
    """g of one proxy on one set of traces.

    params: float32. tokens: how many targets; loss: their mean NLL in nats; deviation: see `Differentiator.deviation`;
    norms: per layer, see `layer_norms`.
    """

    params: Params
    tokens: int
    loss: float
    deviation: float
    norms: dict[str, float]


def deal(examples: Iterable[Example], parts: int) -> list[list[Example]]:
    """The examples in the order of their ids, dealt into `parts` like cards."""
    ordered = sorted(examples)
    return [ordered[i::parts] for i in range(parts)]


def batches(examples: Iterable[Example], rows: int) -> list[Batch]:
    """All examples in batches of `rows`; see batching.py."""
    return [batch for _, batch in batching.batches(examples, rows)]


class Differentiator:
    """Takes gradients of proxies of one architecture; holds the compiled programs.

    In float32 with highest precision, whatever the proxies run in. Rows are split over the mesh's (data, proxy) and
    weights over model. All processes of one program call it with the same batches.
    """

    def __init__(self, model: Model, mesh: Mesh):
        self.model = make_model(dataclasses.replace(model.config, dtype='float32'))
        self.layout = proxy_layout(mesh, model.config.sizes, 1)
        self._start = jax.jit(self._zeros)
        self._add = jax.jit(self._sum, donate_argnums=0)
        self._mean = jax.jit(lambda g, count: jax.tree.map(lambda x: x / count, g), donate_argnums=0)
        self._variance = jax.jit(self._variances)

    @property
    def rows(self) -> int:
        """Of a batch."""
        return ROWS * self.layout.ways('B')

    def take(self, params: Params, batches: Sequence[Batch], tell: Tell = lambda done, total: None) -> Gradient:
        """g of the proxy's mean loss over the batches, which hold at least one target, and what is said about it."""
        params, passes = self.exact(params), 2 * len(batches)

        def told(start: int) -> Iterator[Batch]:
            for i, batch in enumerate(batches):
                tell(start + i, passes)
                yield batch

        g, loss, count = self.mean_gradient(params, told(0))
        spread = self.deviation(params, g, told(len(batches)))
        tell(passes, passes)
        return Gradient(g, count, loss, spread, layer_norms(g))

    def mean_gradient(self, params: Params, batches: Iterable[Batch]) -> tuple[Params, float, int]:
        """(g, mean loss, number of targets): the gradient of the mean NLL of all targets of all batches together."""
        params, sums = self.exact(params), self._start()
        for batch in batches:
            sums = self._add(sums, params, self._place(batch))
        total, nll, count = sums
        return self._mean(total, count), float(nll) / int(count), int(count)

    def deviation(self, params: Params, direction: Params, batches: Iterable[Batch]) -> float:
        """The root of the mean, over the target positions, of Var(delta(v)) for v drawn from the proxy's next-token
        probabilities; delta(v) is the derivative of log p(v), at temperature 1, along `direction`.

        Along g / deviation a strength has the same unit for every proxy, whatever its size and its loss: moving its
        log-probs by lam * delta costs about lam^2 / 2 nats of KL per token.
        """
        params = self.exact(params)
        sums = [self._variance(params, direction, self._place(batch)) for batch in batches]
        return math.sqrt(math.fsum(float(x) for x, _ in sums) / sum(int(n) for _, n in sums))

    def exact(self, params: Params) -> Params:
        """The params as float32, laid out for the gradient; the same arrays where they are so already."""
        shardings = {path: self.layout.sharding(self.model.axes[path]) for path in params}
        if all(x.dtype == jnp.float32 and x.sharding == shardings[path] for path, x in params.items()):
            return params
        cast = jax.jit(lambda params: jax.tree.map(lambda x: x.astype(jnp.float32), params), out_shardings=shardings)
        return cast(params)

    def _zeros(self) -> _Sums:
        zeros = {path: jnp.zeros(shape) for path, shape in self.model.shapes.items()}
        return self._lay_out(zeros), jnp.float32(0), jnp.int32(0)

    def _sum(self, sums: _Sums, params: Params, batch: Batch) -> _Sums:
        (nll, count), g = jax.value_and_grad(self._loss, has_aux=True)(params, batch)
        return jax.tree.map(jnp.add, sums[0], self._lay_out(g)), sums[1] + nll, sums[2] + count

    def _loss(self, params: Params, batch: Batch) -> tuple[Array, Array]:
        positions_BL = batching.positions(batch.tokens_BL)
        x_BLD, _ = self.model.apply(params, batch.tokens_BL, positions_BL, method='hidden', remat=True)
        # The logits are made anew in the backward pass: nothing of the vocabulary's size is kept meanwhile.
        loss = jax.checkpoint(lambda x_BLD: losses.loss(self.model.apply(params, x_BLD, method='unembed'), *batch))
        return loss(x_BLD)

    def _variances(self, params: Params, direction: Params, batch: Batch) -> tuple[Array, Array]:
        logits_BLV, slopes_BLV = push(self.model, params, direction, batch.tokens_BL)
        p_BLV = jax.nn.softmax(logits_BLV, axis=-1)
        variance_BL = jnp.sum(p_BLV * centre(p_BLV, slopes_BLV) ** 2, axis=-1)
        chosen_BL = losses.predicting(batch.targets_BL)
        return jnp.sum(jnp.where(chosen_BL, variance_BL, 0.0)), jnp.sum(chosen_BL)

    def _lay_out(self, g: Params) -> Params:
        return {path: self.layout.shard(x, self.model.axes[path]) for path, x in g.items()}

    def _place(self, batch: Batch) -> Batch:
        pace.step()
        return batch.on(self.layout)


def push(model: Model, params: Params, direction: Params, tokens_BL: Array) -> tuple[Array, Array]:
    """(logits_BLV, their derivatives along `direction`), uncached: one forward-mode pass."""
    positions_BL = batching.positions(tokens_BL)
    return jax.jvp(lambda params: model.apply(params, tokens_BL, positions_BL)[0], (params,), (direction,))


def centre(p_V: Array, x_V: Array) -> Array:
    """x less its mean under p: a derivative of logits becomes that of log-probs. Over the last axis."""
    return x_V - jnp.sum(p_V * x_V, axis=-1, keepdims=True)


def layer_norms(g: Params) -> dict[str, float]:
    """The Euclidean norm of each layer's part, in float32: 'embed', 'blocks.0', ..."""
    layers: dict[str, list[str]] = {}
    for path in g:
        first, *rest = path.split('.')
        layers.setdefault(f'{first}.{rest[0]}' if first == 'blocks' else first, []).append(path)

    @jax.jit
    def norms(g: Params) -> dict[str, Array]:
        return {name: jnp.sqrt(sum(jnp.sum(jnp.square(g[path])) for path in paths)) for name, paths in layers.items()}

    return {name: float(norm) for name, norm in norms(g).items()}
