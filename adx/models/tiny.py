"""The testbed's models: a teacher, two families of proxies, two of students, and a judge.

Families differ in width, depth, attention layout and mechanism, so that what is learned about one is no knowledge of
another. `tools/train_testbed` makes their weights.
"""

from __future__ import annotations

import dataclasses

from adx.models.transformer import TransformerConfig

TEACHER = TransformerConfig(
    vocab_size=100, num_layers=4, embed_dim=128, mlp_dim=320, num_heads=4, num_kv_heads=4, head_dim=32, max_length=512,
    tied=False, qk_norm=True,
)  # fmt: skip
PRESETS = {
    'testbed-teacher': TEACHER,
    'testbed-proxy-deep': dataclasses.replace(
        TEACHER, num_layers=4, embed_dim=96, mlp_dim=192, num_heads=3, num_kv_heads=3
    ),
    'testbed-proxy-grouped': dataclasses.replace(
        TEACHER, num_layers=3, embed_dim=128, mlp_dim=192, num_heads=4, num_kv_heads=2
    ),
    'testbed-student-wide': dataclasses.replace(
        TEACHER, num_layers=3, embed_dim=128, mlp_dim=256, num_heads=8, num_kv_heads=8, head_dim=16
    ),
    'testbed-student-biased': dataclasses.replace(
        TEACHER, num_layers=4, embed_dim=112, mlp_dim=224, num_heads=7, num_kv_heads=1, head_dim=16, qkv_bias=True,
        qk_norm=False,
    ),
    'testbed-judge': dataclasses.replace(TEACHER, num_layers=5, embed_dim=80, mlp_dim=240, num_heads=5, num_kv_heads=5),
}
