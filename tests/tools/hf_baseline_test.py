"""The baseline of the speed comparison serves the distribution that adx serves, so the two do the same work."""

from __future__ import annotations

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from adx.checkpoints import load
from adx.decoding import loop, sampling
from adx.decoding.derivative import difference_weights
from adx.decoding.ensemble import Ensemble, Group, Weights, stack_params
from adx.defences import Antidistillation, ProductOfExperts
from adx.mesh import make_mesh, proxy_layout, teacher_layout
from adx.types import Sampling

SOURCE = str(pathlib.Path(__file__).parents[1] / 'goldens' / 'smollm2')
PROMPTS = [[5, 9, 2, 7, 1, 30], [4, 8, 3]]
TEMPERATURE, PROTECTED, EPS = 0.7, (0, 2), 1e-2


@pytest.fixture
def translator(tmp_path) -> str:
    width, path = load(SOURCE).model.config.embed_dim, tmp_path / 'translator.safetensors'
    rng = np.random.default_rng(0)
    weight, bias = np.eye(width) + rng.normal(0, 0.1, (width, width)), rng.normal(size=width)
    save_file({'translator': weight.astype(np.float32), 'translator_bias': bias.astype(np.float32)}, path)
    return str(path)


def random_direction(model, seed=5):
    """Small beside the weights, so that the two copies differ as they do in use."""
    rng = np.random.default_rng(seed)
    return {path: rng.normal(0, 1e-2, shape).astype(np.float32) for path, shape in model.shapes.items()}


def adx_log_probs(defence, translator: str, tokens: list[int]) -> np.ndarray:
    """served_V after `tokens`, by the engine's own step and sampler."""
    teacher, proxy = load(SOURCE), load(SOURCE, num_layers=1, translator=translator)
    sizes = teacher.model.config.sizes
    group = Group(proxy.model, proxy_layout(make_mesh(), sizes, 1), 1)
    weights = Weights(teacher.params, (stack_params(proxy.model, group.layout, [proxy.params]),))
    if defence.wants_tangents:
        group = dataclasses.replace(group, directions=1, difference=EPS)
        g = {path: jnp.asarray(x)[None, None] for path, x in random_direction(proxy.model).items()}
        plus, minus = difference_weights(weights.groups[0], g, EPS)
        weights = Weights(teacher.params, (plus,), (minus,))
    ensemble = Ensemble(teacher.model, teacher_layout(make_mesh(), sizes), (group,))
    rows, caches = loop.start(ensemble, defence, 2, 16)
    full = lambda x: jnp.full(2, x, jnp.float32)  # noqa: E731
    numbers = jax.tree.map(full, Sampling(TEMPERATURE)), jax.tree.map(full, defence)
    rows = dataclasses.replace(rows, sampling=numbers[0], defence=numbers[1], defended_B=jnp.ones(2, bool))
    for position, token in enumerate(tokens):
        both = jnp.full(2, token), jnp.full(2, position)
        logits_BV, logits_NBV, tangents_MBV, caches = ensemble.step(weights, caches, *both)
    protected_V = jnp.zeros(sizes['V'], bool).at[jnp.array(PROTECTED)].set(True)
    keys = jax.random.split(jax.random.key(0), 2)
    served = sampling.serve(logits_BV, logits_NBV, rows, keys, protected_V, tangents_MBV)
    return np.asarray(served.served_V[0])


@pytest.mark.oracle
@pytest.mark.parametrize('defence', [ProductOfExperts(0.4), Antidistillation(0.5)], ids=lambda d: type(d).__name__)
def test_the_baseline_serves_the_distribution_of_adx(defence, translator, tmp_path):
    import torch

    from tools.bench import hf_baseline

    rule = hf_baseline.ProductOfExperts(0.4)
    if defence.wants_tangents:
        model = load(SOURCE, num_layers=1, translator=translator).model
        hf_baseline.write_direction(str(tmp_path / 'g'), model, random_direction(model))
        rule = hf_baseline.Antidistillation(0.5, EPS, str(tmp_path / 'g'))
    serving = hf_baseline.Serving(rule, TEMPERATURE, PROTECTED, (2,))
    baseline = hf_baseline.Baseline(pathlib.Path(SOURCE), 1, translator, serving)
    tokens_BL, mask_BL = baseline.pad(PROMPTS)
    processor = hf_baseline.RuleProcessor(baseline.proxies, mask_BL, serving)
    new = 11
    # Log-probs of size 10 of float32 sums in another order; a difference divides that by 2 eps.
    atol = 5e-3 if defence.wants_tangents else 5e-5
    with torch.inference_mode():
        for step in range(2):  # the prompts, then one token on the caches
            positions_BL = (mask_BL.cumsum(-1) - 1).clamp(min=0)
            logits_BV = baseline.teacher(tokens_BL, attention_mask=mask_BL, position_ids=positions_BL).logits[:, -1]
            theirs = processor(tokens_BL, logits_BV).numpy()
            for b, prompt in enumerate(PROMPTS):
                ours = adx_log_probs(defence, translator, prompt + [new] * step)
                np.testing.assert_allclose(theirs[b], ours, atol=atol)
            tokens_BL = torch.cat([tokens_BL, torch.full((2, 1), new)], -1)
            mask_BL = torch.cat([mask_BL, torch.ones((2, 1), dtype=torch.long)], -1)
