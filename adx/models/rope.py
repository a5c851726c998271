"""Rotary position embedding, half-split, with the scalings of Llama 3 and Gemma 3."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Rope:
    """theta: the base. scaling: 'none', 'linear' (positions / factor) or 'llama3' (wavelength-dependent).

    low_freq, high_freq, original_length belong to 'llama3' (Llama 3.1 model card, rope_scaling).
    """

    theta: float = 10000.0
    scaling: str = 'none'
    factor: float = 1.0
    low_freq: float = 1.0
    high_freq: float = 4.0
    original_length: int = 8192

    def frequencies(self, head_dim: int) -> np.ndarray:
        """Radians per token of each of the head_dim / 2 planes, float64."""
        frequency = self.theta ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
        if self.scaling == 'none':
            return frequency
        if self.scaling == 'linear':
            return frequency / self.factor
        if self.scaling != 'llama3':
            raise ValueError(f"unknown rope scaling {self.scaling!r}; one of 'none', 'linear', 'llama3'")
        # Long wavelengths are divided by factor, short ones kept, those between are blended.
        turns = self.original_length * frequency / (2 * math.pi)
        kept = np.clip((turns - self.low_freq) / (self.high_freq - self.low_freq), 0.0, 1.0)
        return frequency * (kept + (1.0 - kept) / self.factor)


def rotate(x_BLHK: Array, positions_BL: Array, rope: Rope) -> Array:
    """Rotates plane (i, i + K/2) of every head by position * frequency_i. Angles and products in float32."""
    frequency = jnp.asarray(rope.frequencies(x_BLHK.shape[-1]), jnp.float32)
    angle = positions_BL[..., None, None].astype(jnp.float32) * frequency
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    first, second = jnp.split(x_BLHK.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x_BLHK.dtype)
