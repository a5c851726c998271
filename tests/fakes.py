"""Tiny random models, ensembles of them, and one row's views: what tests decode with instead of checkpoints."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from adx import struct
from adx.decoding.engine import DecodeConfig
from adx.decoding.ensemble import Ensemble, Group, Weights, stack_params
from adx.defences import ProductOfExperts, Undefended
from adx.mesh import make_mesh, proxy_layout, teacher_layout
from adx.models.transformer import TransformerConfig, make_model
from adx.types import Request, RequestId, Sampling, Stateless, Views

VOCAB, VOCAB_ROWS = 61, 64
TEACHER = TransformerConfig(
    vocab_size=VOCAB, vocab_rows=VOCAB_ROWS, num_layers=2, embed_dim=16, mlp_dim=32,
    num_heads=4, num_kv_heads=2, head_dim=8, max_length=64,
)  # fmt: skip
PROXY = TransformerConfig(
    vocab_size=VOCAB, vocab_rows=VOCAB_ROWS, num_layers=1, embed_dim=8, mlp_dim=16,
    num_heads=2, num_kv_heads=1, head_dim=8, max_length=64,
)  # fmt: skip
DECODE = DecodeConfig(slots=8, chunk=3, buckets=(4, 8), prefill_rows=8, cache_length=24, record='scalars')


def make_ensemble(mesh=None, teacher=TEACHER, proxy=PROXY, count=2, shard_weights=False, directions=0):
    """(Ensemble, Weights) of one random teacher and `count` random proxies of one architecture, placed on `mesh`.

    Each proxy has `directions` random directions.
    """
    mesh = mesh or make_mesh()
    model, layout = make_model(teacher), teacher_layout(mesh, teacher.sizes, shard_weights)
    params = {path: jax.device_put(w, layout.sharding(model.axes[path])) for path, w in model.init(0).items()}
    if not count:
        return Ensemble(model, layout), Weights(params, ())
    group = Group(make_model(proxy), proxy_layout(mesh, proxy.sizes, count), count, directions)
    stacked = stack_params(group.model, group.layout, [group.model.init(1 + i) for i in range(count)])
    along = (make_directions(group),) if directions else ()
    return Ensemble(model, layout, (group,)), Weights(params, (stacked,), along)


def make_directions(group, seed=9):
    """Random directions of a group's weights: derivatives of logits are about as large as the logits."""
    model, lead, along = group.model, (group.count, group.directions), {}
    keys = jax.random.split(jax.random.key(seed), len(model.shapes))
    for key, (path, shape) in zip(keys, model.shapes.items(), strict=True):
        g = 0.2 * jax.random.normal(key, lead + shape)
        along[path] = jax.device_put(g, group.layout.sharding('NM' + model.axes[path]))
    return along


@struct.dataclass
class Sloped(Stateless):
    """Adds the mean of the proxies' derivatives, times `strength`: a rule that wants them."""

    strength: float = 1.0

    wants_proxies = True
    wants_tangents = True

    def adjust(self, views, state):
        return views.teacher_V + self.strength * jnp.mean(views.tangents_MV, axis=0), state


def make_requests(count=8, defence=None, sampling=None, new=7, samples=1):
    """`count` requests with prompts of 1 to 8 tokens; `samples` of them share each prompt."""
    rng = np.random.default_rng(0)
    defence = ProductOfExperts(0.5) if defence is None else defence
    sampling = sampling or Sampling(top_k=20, top_p=0.95)
    prompts = [tuple(rng.integers(0, VOCAB, 1 + i % 8).tolist()) for i in range(-(-count // samples))]
    return [
        Request(RequestId('fake', 'train', str(i // samples), i % samples, 'arm'), prompts[i // samples], new,
                sampling, defence)
        for i in range(count)
    ]  # fmt: skip


def decoded(ensemble, weights, tokens_BL, prompt):
    """(logits_LBV, logits_LNBV, tangents_LMBV) after every token from the prompt's last on: a prefill, then steps."""
    rows, length = tokens_BL.shape

    @jax.jit
    def start(weights, tokens_BL):
        index = jnp.arange(rows)
        caches = ensemble.empty_caches(rows, length)
        return caches.insert(ensemble.prefill(weights, tokens_BL), index, index)

    step, caches, said = jax.jit(ensemble.step), start(weights, tokens_BL[:, :prompt]), []
    for position in range(prompt - 1, length):
        positions_B = np.full(rows, position, np.int32)
        *one, caches = step(weights, caches, tokens_BL[:, position], positions_B)
        said.append(one)
    return tuple(np.stack(each) for each in zip(*said, strict=True))


def dot_sizes(ensemble, weights) -> list[int]:
    """Multiplications of every product in a decode step."""
    caches = jax.eval_shape(lambda: ensemble.empty_caches(8, 16))
    index_B = jax.ShapeDtypeStruct((8,), jnp.int32)
    sizes = []

    def visit(jaxpr):
        for equation in jaxpr.eqns:
            if equation.primitive.name == 'dot_general':
                contracted = equation.params['dimension_numbers'][0][0]
                shape = equation.invars[0].aval.shape
                sizes.append(int(np.prod([shape[i] for i in contracted])) * equation.outvars[0].aval.size)
            jax.tree.map(visit, list(jax.core.jaxprs_in_params(equation.params)))

    visit(jax.make_jaxpr(ensemble.step)(weights, caches, index_B, index_B).jaxpr)
    return sizes


def check_agreement(done, expected):
    """A trace may leave the other program's path only where its rounding decides; until then log-probs agree.

    Both: completions by request id, recorded with 'scalars'.
    """
    assert set(done) == set(expected)
    same = 0
    for id_, theirs in expected.items():
        mine = done[id_]
        pairs = zip(mine.tokens, theirs.tokens, strict=False)
        shared = next((i for i, (a, b) in enumerate(pairs) if a != b), len(mine.tokens))
        same += shared == len(theirs.tokens)
        for name in ('log_prob', 'kl'):
            # Logits of size 1 summed in another order: a few units of float32's last place.
            np.testing.assert_allclose(mine.statistics[name][:shared], theirs.statistics[name][:shared], atol=2e-5)
    assert same >= len(done) - 1  # near ties of 1e-5 in some hundred draws are rarer than one


def undefended(**kwargs):
    return make_requests(defence=Undefended(), **kwargs)


class Scores:
    """A scorer of two proxies to which every trace is alike."""

    rows = 8

    def __init__(self, score: float):
        self.score = score

    def __call__(self, batch):
        return np.full((2, len(batch.tokens_BL)), self.score)


def make_views(seed=0, vocab=32, proxies=2, allowed=None, temperature=1.0) -> Views:
    """Random log-probs of one row, and derivatives along one direction a proxy; `allowed` None allows every token."""
    teacher, *rest = jax.random.split(jax.random.key(seed), proxies + 1)
    draw = [jax.nn.log_softmax(2 * jax.random.normal(key, (vocab,))) for key in (teacher, *rest)]
    tangents = [jax.random.normal(jax.random.fold_in(key, 1), (vocab,)) for key in rest]
    centred = [x - jnp.sum(jnp.exp(lp) * x) for x, lp in zip(tangents, draw[1:], strict=True)]
    return Views(
        teacher_V=draw[0],
        proxies_NV=jnp.stack(draw[1:]) if proxies else jnp.zeros((0, vocab)),
        allowed_V=jnp.ones(vocab, bool) if allowed is None else jnp.asarray(allowed),
        temperature=jnp.float32(temperature),
        token=jnp.int32(3),
        position=jnp.int32(5),
        key=jax.random.key(seed + 1000),
        open_mass=jnp.float32(1),
        tangents_MV=jnp.stack(centred) if proxies else jnp.zeros((0, vocab)),
    )
