"""Makes the models of the bridge: language models that have learned the testbed's task.

    python -m tools.train_bridge --out=$HOME/.cache/adx                   # all of them, where configs look
    python -m tools.train_bridge --out=/tmp/bridge --only=bridge-teacher --steps=2    # a trial

The teacher is SmolLM2 with all its layers; proxy and student are its first layers, which differ in number and in what
they read, and the cross-tokenizer student is Gemma 3. Proxies and students learn easier tasks only, as the testbed's
do. It is work for a GPU; an interrupted run continues, and models that are there are left alone. What is measured with
them says whether defences rank on the testbed as they do on language models: see configs/bridge.py.
"""

from __future__ import annotations

import dataclasses
import functools

import jax.numpy as jnp
from absl import flags
from etils import epath

from adx.datasets.tokenizing import save_tokenizer
from adx.decoding.engine import DecodeConfig
from adx.directions import cast
from adx.experiment import ModelSource
from adx.loading import load_alone
from adx.optimising import Recipe
from launch import program
from tools import train_testbed as testbed
from tools.train_testbed import EASIER, OPERATING, SERVED, Phase, Plan

_DTYPE = flags.DEFINE_string('dtype', 'bfloat16', 'Of activations and products.', allow_override=True)

SMOLLM2 = 'smollm2-135m-instruct'
# Of a base model, which has none.
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ 'Question: ' if message.role == 'user' else ' ' }}"
    "{{ message.content }}{{ '\\nAnswer:' if message.role == 'user' else eos_token }}{% endfor %}"
)
DECODE = DecodeConfig(slots=64, chunk=8, buckets=(192,), cache_length=512)


@dataclasses.dataclass(frozen=True)
class Part:
    """One model: the layers of a pre-trained one that it starts from, and what it learns for how many steps."""

    source: ModelSource
    curriculum: tuple[Phase, ...]
    steps: int


PARTS = {
    'bridge-teacher': Part(ModelSource(SMOLLM2), SERVED, 3000),
    'bridge-proxy': Part(ModelSource(SMOLLM2, exit_layer=12), EASIER, 2000),
    'bridge-student': Part(ModelSource(SMOLLM2, exit_layer=18), EASIER, 2000),
    'bridge-student-gemma': Part(ModelSource('gemma-3-270m'), EASIER, 1000),
}


def make(name: str, shard: int, out: epath.Path) -> None:
    """Trains, examines and saves a model that is not there yet."""
    place, part = out / name, PARTS[name]
    if place.exists():
        print(f'{name} is there')
        return
    loaded, tokenizer = load_alone(part.source)
    tokenizer = dataclasses.replace(tokenizer, template=tokenizer.template or TEMPLATE)
    steps = flags.FLAGS.steps or part.steps
    recipe = Recipe(
        learning_rate=2e-4, warmup=0.05, beta2=0.98, rows=32, steps=steps, dtype=_DTYPE.value, pack=True, length=512
    )
    plan = Plan(part.curriculum, shard, recipe)
    stacked = {path: jnp.asarray(x, jnp.float32)[None] for path, x in loaded.params.items()}
    params, seconds = testbed.train(loaded.model, stacked, [plan], tokenizer, out / 'training' / name)
    found = testbed.examine(loaded.model, params, tokenizer, OPERATING, decode=DECODE)
    record = {'source': dataclasses.asdict(part.source), 'shard': shard, 'steps': steps, 'seconds': seconds}
    write_tokenizer = functools.partial(save_tokenizer, tokenizer)
    testbed.save(place, loaded.model, cast(params, 'bfloat16'), write_tokenizer, record | {'accuracy': found})


def main() -> None:
    for name in testbed.chosen(flags.FLAGS.only, PARTS):
        make(name, 100 + list(PARTS).index(name), testbed.out_directory())


if __name__ == '__main__':
    program.start(main)
