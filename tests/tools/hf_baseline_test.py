"""The baseline of the speed comparison serves the distribution that adx serves, so the two do the same work."""

from __future__ import annotations

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from adx.checkpoints import load
from adx.decoding import loop, sampling
from adx.decoding.ensemble import Ensemble, Group, Weights, stack_params
from adx.defences import ProductOfExperts
from adx.mesh import make_mesh, proxy_layout, teacher_layout
from adx.types import Sampling

SOURCE = str(pathlib.Path(__file__).parents[1] / 'goldens' / 'smollm2')
PROMPTS = [[5, 9, 2, 7, 1, 30], [4, 8, 3]]
GAMMA, TEMPERATURE, PROTECTED = 0.4, 0.7, (0, 2)


@pytest.fixture
def translator(tmp_path) -> str:
    width, path = load(SOURCE).model.config.embed_dim, tmp_path / 'translator.safetensors'
    rng = np.random.default_rng(0)
    weight, bias = np.eye(width) + rng.normal(0, 0.1, (width, width)), rng.normal(size=width)
    save_file({'translator': weight.astype(np.float32), 'translator_bias': bias.astype(np.float32)}, path)
    return str(path)


def adx_log_probs(translator: str, tokens: list[int]) -> np.ndarray:
    """served_V after `tokens`, by the engine's own step and sampler."""
    teacher, proxy = load(SOURCE), load(SOURCE, num_layers=1, translator=translator)
    sizes = teacher.model.config.sizes
    group = Group(proxy.model, proxy_layout(make_mesh(), sizes, 1), 1)
    ensemble = Ensemble(teacher.model, teacher_layout(make_mesh(), sizes), (group,))
    weights = Weights(teacher.params, (stack_params(proxy.model, group.layout, [proxy.params]),))
    rows, caches = loop.start(ensemble, ProductOfExperts(GAMMA), 2, 16)
    full = lambda x: jnp.full(2, x, jnp.float32)  # noqa: E731
    rows = rows.replace(
        sampling=jax.tree.map(full, Sampling(TEMPERATURE)), defence=jax.tree.map(full, ProductOfExperts(GAMMA))
    )
    for position, token in enumerate(tokens):
        both = jnp.full(2, token), jnp.full(2, position)
        logits_BV, logits_NBV, _, caches = ensemble.step(weights, caches, *both)
    protected_V = jnp.zeros(sizes['V'], bool).at[jnp.array(PROTECTED)].set(True)
    keys = jax.random.split(jax.random.key(0), 2)
    return np.asarray(sampling.serve(logits_BV, logits_NBV, rows, keys, protected_V, jnp.ones(2, bool)).served_V[0])


@pytest.mark.oracle
def test_the_baseline_serves_the_distribution_of_adx(translator):
    import torch

    from tools.bench import hf_baseline

    serving = hf_baseline.Serving(hf_baseline.ProductOfExperts(GAMMA), TEMPERATURE, PROTECTED, (2,))
    baseline = hf_baseline.Baseline(pathlib.Path(SOURCE), 1, translator, serving)
    tokens_BL, mask_BL = baseline.pad(PROMPTS)
    processor = hf_baseline.RuleProcessor(baseline.proxies, mask_BL, serving)
    new = 11
    with torch.inference_mode():
        for step in range(2):  # the prompts, then one token on the caches
            positions_BL = (mask_BL.cumsum(-1) - 1).clamp(min=0)
            logits_BV = baseline.teacher(tokens_BL, attention_mask=mask_BL, position_ids=positions_BL).logits[:, -1]
            theirs = processor(tokens_BL, logits_BV).numpy()
            for b, prompt in enumerate(PROMPTS):
                # Log-probs of size 10 of float32 sums in another order.
                np.testing.assert_allclose(theirs[b], adx_log_probs(translator, prompt + [new] * step), atol=5e-5)
            tokens_BL = torch.cat([tokens_BL, torch.full((2, 1), new)], -1)
            mask_BL = torch.cat([mask_BL, torch.ones((2, 1), dtype=torch.long)], -1)
