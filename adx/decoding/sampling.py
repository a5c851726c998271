"""From logits to the next token: the order of operations that every defence shares.

(1) float32 log-softmax at the row's temperature; (2) the truncation set, from the teacher; (3) the defence, inside
the set; (4) renormalisation, protected tokens keep their mass; (5) Gumbel-max with the row's key.
All functions are of one row and are vmapped, except truncation, which skips its work when no row asks for it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from adx import numerics, struct
from adx.types import Array, Defence, Sampling, State, Views

DEFENCE_STREAM = 1  # folded into the row's key for the defence's own draws; sampling uses the key itself


@struct.dataclass
class Served:
    """One row's next token, and what is recorded about it when asked.

    served_V, teacher_V: normalised log-probs on the truncation set, what was sampled from and the teacher's.
    undefended: the token the teacher alone would have drawn with the same noise.
    fallback: bool, the teacher was served because proxies or rule did not give finite numbers.
    poisoned: bool, the teacher gave none either: the token means nothing.
    """

    token: Array
    undefended: Array
    fallback: Array
    served_V: Array
    teacher_V: Array
    state: State
    poisoned: Array | bool = False


def tempered(logits: Array, temperature: Array) -> Array:
    """Float32 log-probs at `temperature` (per row, leading axes of `logits`); at 0 those of temperature 1.

    A logit of -inf is a probability of 0, MASKED as others are.
    """
    scale = jnp.where(temperature == 0, 1.0, temperature)
    return jnp.maximum(numerics.log_softmax(logits.astype(jnp.float32) / scale[..., None]), numerics.MASKED)


def centred(tangents_MBV: Array, logits_NBV: Array) -> Array:
    """Derivatives of the proxies' log-probs at temperature 1 from those of their logits; 0 in padded vocabulary rows.

    The derivative of a log-softmax: less the mean under the proxy. Proxy n's M / N directions stand together.
    """
    tangents_NMBV = tangents_MBV.reshape(logits_NBV.shape[0], -1, *logits_NBV.shape[1:])
    best_NB1 = jnp.max(logits_NBV, axis=-1, keepdims=True)
    weights_N1BV = jnp.exp(logits_NBV - best_NB1)[:, None]
    weights_NMBV = jnp.broadcast_to(weights_N1BV, tangents_NMBV.shape)
    sums_NMB, totals_NMB = numerics.totals(weights_NMBV * tangents_NMBV, weights_NMBV)
    mean_NMB1 = (sums_NMB / totals_NMB)[..., None]
    return jnp.where(logits_NBV[:, None] == numerics.MASKED, 0.0, tangents_NMBV - mean_NMB1).reshape(tangents_MBV.shape)


def truncation(log_probs_BV: Array, sampling: Sampling) -> tuple[Array, Array]:
    """allowed_BV: the tokens that pass top-k, top-p and min-p, each taken from the whole distribution; and the rows
    whose log-probs are nan, as the largest of them says, which a sharded vocabulary finds anyhow.

    Ties at a threshold are kept, and so is the token that crosses top-p. A token of probability 0 never passes.
    """
    probs_BV = jnp.exp(log_probs_BV)
    k_B, p_B, min_p_B = (jnp.asarray(x, jnp.float32) for x in (sampling.top_k, sampling.top_p, sampling.min_p))

    def search(asked_B: Array, mass: Callable[[Array], Array], target_B: Array) -> Array:
        """The threshold of the rows that ask for one, 0 for the others; free where none asks."""
        found = lambda: jnp.where(asked_B, numerics.largest_threshold(probs_BV, mass, target_B), 0.0)  # noqa: E731
        return lax.cond(jnp.any(asked_B), found, lambda: jnp.zeros_like(target_B))

    top_p_B = search(p_B < 1, lambda p: p, p_B)
    top_k_B = search(k_B > 0, jnp.ones_like, k_B)
    threshold_B = jnp.maximum(jnp.maximum(top_p_B, top_k_B), min_p_B * jnp.max(probs_BV, axis=-1))
    return (probs_BV >= threshold_B[:, None]) & (probs_BV > 0), jnp.isnan(threshold_B)


def truncated(log_probs_BV: Array, allowed_BV: Array, sampling: Sampling) -> Array:
    """Log-probs normalised over the truncation set. Those of a row that truncates nothing are so already.

    Not under a condition: its collectives inside one let CPU devices that share few threads wait for each other.
    """
    k_B, p_B, min_p_B = (jnp.asarray(x) for x in (sampling.top_k, sampling.top_p, sampling.min_p))
    asked_B = (k_B > 0) | (p_B < 1) | (min_p_B > 0)
    return jnp.where(asked_B[:, None], numerics.renormalise(log_probs_BV, allowed_BV), log_probs_BV)


def serve_row(
    defence: Defence, state: State, views: Views, key: Array, protected_V: Array, plays: Array | bool = True
) -> Served:
    """Steps 3 to 5 for one row. `views.teacher_V` are the tempered log-probs, normalised over `views.allowed_V`.

    The defence is shown the truncation set without protected tokens: those are not its to choose. Where it does not
    play, or gives no finite numbers, the teacher's bits are served and its state stands still.
    """
    greedy = views.temperature == 0
    teacher_V, open_V = views.teacher_V, views.allowed_V & ~protected_V
    all_protected = ~jnp.any(open_V)
    open_mass = jnp.sum(jnp.where(open_V, jnp.exp(teacher_V), 0.0))
    allowed_V = jnp.where(all_protected, views.allowed_V, open_V)
    views = dataclasses.replace(views, allowed_V=allowed_V, open_mass=jnp.where(all_protected, 1.0, open_mass))
    scores_V, after = defence.adjust(views, state)
    adjusted_V = numerics.renormalise(scores_V, views.allowed_V)
    fallback = plays & ~(_finite(views) & ~jnp.isnan(adjusted_V[0]))
    plays &= ~fallback
    state = jax.tree.map(lambda new, old: jnp.where(plays & ~all_protected, new, old), after, state)
    # A rule that changed nothing serves the teacher's very bits: protection would only round them.
    unchanged = ~plays | all_protected | jnp.all((scores_V == views.teacher_V) | ~views.allowed_V)
    kept_V = numerics.keep_mass(adjusted_V, teacher_V, protected_V, open_mass)
    served_V = jnp.where(unchanged, teacher_V, kept_V)

    noise_V = jnp.where(greedy, 0.0, numerics.gumbel(key, teacher_V.shape[-1]))
    undefended = numerics.argmax(teacher_V + noise_V)
    # Deterministic choices have no mass to keep: a protected token is emitted when it is the teacher's draw.
    deterministic = (greedy | defence.is_argmax) & ~unchanged
    choice = numerics.argmax(jnp.where(deterministic, adjusted_V, served_V + noise_V))
    token = jnp.where(deterministic & protected_V[undefended], undefended, choice)
    return Served(token, undefended, fallback, served_V, teacher_V, state)


def _finite(views: Views) -> Array:
    """Whether proxies and derivatives are finite. One entry tells: nan or inf in any logit makes the normaliser, and
    with it every log-prob, nan, and so does the mean that centres a derivative."""
    # A derivative is centred by all of its proxy's logits.
    normalised = views.proxies_NV if views.tangents_MV is None else views.tangents_MV
    return jnp.all(jnp.isfinite(normalised[:, 0]))


def serve(
    logits_BV: Array, proxy_logits_NBV: Array, rows: Any, key_B: Array, protected_V: Array,
    tangents_MBV: Array | None = None,
) -> Served:  # fmt: skip
    """The next token of every row. `rows` are the slots (loop.Rows); where not defended_B, the teacher's own token.

    tangents_MBV: derivatives of the proxies' logits.
    """
    temperature_B = rows.sampling.temperature
    teacher_BV = tempered(logits_BV, temperature_B)
    proxies_NBV = tempered(proxy_logits_NBV, jnp.broadcast_to(temperature_B, proxy_logits_NBV.shape[:-1]))
    allowed_BV, poisoned_B = truncation(teacher_BV, rows.sampling)
    teacher_BV = truncated(teacher_BV, allowed_BV, rows.sampling)
    tangents_MBV = None if tangents_MBV is None else centred(tangents_MBV, proxy_logits_NBV)

    # open_mass is for serve_row to say.
    own_key_B, mass_B = jax.vmap(jax.random.fold_in, (0, None))(key_B, DEFENCE_STREAM), jnp.ones_like(temperature_B)
    views = Views(
        teacher_BV, proxies_NBV, allowed_BV, temperature_B, rows.token_B, rows.position_B, own_key_B, mass_B,
        tangents_MBV,
    )  # fmt: skip
    axes: Any = jax.tree.map(lambda _: 0, views)
    axes = dataclasses.replace(axes, proxies_NV=1, tangents_MV=None if tangents_MBV is None else 1)
    serve_rows = jax.vmap(serve_row, in_axes=(0, 0, axes, 0, None, 0))
    served = serve_rows(rows.defence, rows.state, views, key_B, protected_V, rows.defended_B)
    return dataclasses.replace(served, poisoned=poisoned_B)
