r"""Makes the testbed's models: their tokenizer, their weights, and what they can do.

Every model learns the language of the arithmetic testbed from the worked solutions of many authors, easier tasks first:
recalling numbers, sums, then problems of one step and more. The teacher learns problems as long as those that are
served; proxies and students stop before, and read other shards of text than the teacher and each other.

    python -m tools.train_testbed --out=/data/testbed

Killing it at any moment and running the same command again continues. Exit codes: 0 done, 2 flags, 3 input, 4 a
directory of another run.
"""

from __future__ import annotations

import dataclasses
import json
import random
import time
from collections.abc import Callable, Collection, Sequence
from typing import Any, Protocol

import jax
import numpy as np
import tokenizers
from absl import flags
from etils import epath
from tokenizers import decoders, models, normalizers, pre_tokenizers
from tqdm import tqdm

from adx import checkpoints, training_io
from adx.answers import reader_of
from adx.batching import Corpus, Example, Rows, Stream, pack
from adx.datasets import Arithmetic
from adx.datasets import arithmetic_problems as problems
from adx.datasets.chat import Prompting, encode_conversation
from adx.datasets.tokenizing import Tokenizer, load_tokenizer
from adx.decoding.engine import DecodeConfig
from adx.directions import cast
from adx.errors import ConfigError
from adx.evaluation import evaluate, make_exam, student_engine
from adx.fields import hint
from adx.mesh import make_mesh
from adx.models.tiny import PRESETS
from adx.models.transformer import Model, Params, make_model
from adx.optimising import Recipe
from adx.training import Trainer
from adx.types import Sampling
from launch import program

SPECIAL = ('<pad>', '<unk>', '<eos>', '<user>', '<assistant>')
TEMPLATE = (
    "{% for message in messages %}{{ '<user>' if message.role == 'user' else '' }}{{ message.content }}"
    "{{ '<assistant>' if message.role == 'user' else '<eos>' }}{% endfor %}"
)
TARGET = Arithmetic(steps=(3, 3), distractors=1)
OPERATING = Sampling(temperature=0.7)
LENGTH = 256  # tokens of a row, which holds several lessons
FULL = 0.94  # of a step's tokens, at which no more lessons are drawn
EXAM = 256  # prompts
DECODE = DecodeConfig(slots=64, chunk=8, buckets=(96,), cache_length=224)

# Tests load several programs into one process.
_OUT = flags.DEFINE_string('out', '', 'The directory of the models.', allow_override=True)
_ONLY = flags.DEFINE_list('only', [], 'Which of the models; all if empty.')
_STEPS = flags.DEFINE_integer('steps', 0, 'Optimiser steps of every model instead of its own: a trial.', lower_bound=0)


@dataclasses.dataclass(frozen=True)
class Phase:
    """A stretch of the curriculum, up to the share `until` of the steps: how often a row is of which task.

    steps: weights of problems of 1, 2, ... steps.
    """

    until: float
    recall: float
    drill: float
    steps: tuple[float, ...] = ()

    def draw(self, rng: random.Random) -> tuple[str, str]:
        """(question, solution) of a task."""
        task = rng.choices(range(2 + len(self.steps)), (self.recall, self.drill, *self.steps))[0]
        if task < 2:
            return (problems.draw_recall, problems.draw_drill)[task](rng)
        return dataclasses.replace(TARGET, steps=(task - 1, task - 1)).draw_lesson(rng)


class Stretch(Protocol):
    """Of a curriculum."""

    @property
    def until(self) -> float: ...

    def draw(self, rng: random.Random) -> tuple[str, str]: ...


TEACHER = (
    Phase(0.12, 2, 1),
    Phase(0.22, 0.7, 0.5, (2,)),
    Phase(0.35, 0.3, 0.3, (1, 2)),
    Phase(1.0, 0.2, 0.2, (0.5, 1, 2)),
)
OTHERS = (Phase(0.35, 2, 1), Phase(0.55, 0.5, 0.5, (2,)), Phase(1.0, 0.2, 0.2, (1, 2, 0.4)))
SERVED = (Phase(1.0, 0.1, 0.1, (0.2, 0.6, 3)),)  # the teacher's second round: mostly problems as they are served
EASIER = (Phase(1.0, 0.1, 0.1, (0.6, 2)),)  # the students': they know all that a thief's traces put together
STEPS = {'testbed-teacher': 9000, 'testbed-student-biased': 6500}  # the latter learns more slowly, unnormed
OTHER_STEPS, SERVED_STEPS, EASIER_STEPS = 4000, 7000, 3000


@dataclasses.dataclass(frozen=True)
class Plan:
    """How one model is made, or made better. shard: of the text that it reads, and the seed of its weights."""

    curriculum: tuple[Stretch, ...]
    shard: int
    recipe: Recipe


def make_plans(name: str, shard: int) -> tuple[Plan, ...]:
    """One round of training after the other, each from the weights of the one before."""
    recipe = Recipe(
        learning_rate=2e-3, warmup=0.03, weight_decay=0.05, beta2=0.98, rows=6,
        steps=_STEPS.value or STEPS.get(name, OTHER_STEPS), pack=True, length=LENGTH,
    )  # fmt: skip
    again = dataclasses.replace(recipe, learning_rate=1e-3)
    if name == 'testbed-teacher':
        again = dataclasses.replace(again, steps=_STEPS.value or SERVED_STEPS)
        return Plan(TEACHER, shard, recipe), Plan(SERVED, shard + len(PRESETS), again)
    if 'student' in name:
        again = dataclasses.replace(again, steps=_STEPS.value or EASIER_STEPS)
        return Plan(OTHERS, shard, recipe), Plan(EASIER, shard + len(PRESETS), again)
    return (Plan(OTHERS, shard, recipe),)


class Lessons:
    """The rows of one model's step, a function of the step alone."""

    def __init__(self, plan: Plan, tokenizer: Tokenizer):
        self.plan, self.tokenizer = plan, tokenizer

    def __call__(self, step: int) -> Rows:
        recipe = self.plan.recipe
        rng = random.Random(f'{self.plan.shard}/{step}')
        phase = next(phase for phase in self.plan.curriculum if step < phase.until * recipe.steps)
        examples: list[Example] = []
        left = FULL * recipe.rows * recipe.length
        while left > 0:
            question, text = phase.draw(rng)
            messages = ({'role': 'user', 'content': question},)
            prompt, completion = encode_conversation(messages, text, self.tokenizer, Prompting())
            examples.append(Example(f'{len(examples):04}', prompt, completion))
            left -= len(prompt) + len(completion)
        packed = pack(examples, recipe.length)[: recipe.rows]
        return Stream([Corpus([one for row in packed for one in row])], recipe.rows, recipe.length, pack=True)(0)


def write_tokenizer(directory: epath.Path, more: Sequence[str] = ()) -> None:
    """A token a word, in the files that `load_tokenizer` reads. more: words beyond the testbed's own."""
    vocabulary = [*SPECIAL, *(f'▁{word}' for word in ('\n', *problems.WORDS, *more))]
    backend = tokenizers.Tokenizer(models.WordLevel({w: i for i, w in enumerate(vocabulary)}, unk_token='<unk>'))
    backend.normalizer = normalizers.Replace('\n', ' \n ')
    backend.pre_tokenizer = pre_tokenizers.Metaspace('▁', prepend_scheme='always')
    decoder = [decoders.Metaspace('▁', prepend_scheme='always'), decoders.Fuse(), decoders.Replace(' \n ', '\n')]
    backend.decoder = decoders.Sequence(decoder)
    backend.add_special_tokens(list(SPECIAL))
    directory.mkdir(parents=True, exist_ok=True)
    backend.save(str(directory / 'tokenizer.json'))
    config = {'tokenizer_class': 'PreTrainedTokenizerFast', 'add_bos_token': False, 'eos_token': '<eos>'}
    for name, value in (('tokenizer_config', config), ('generation_config', {'eos_token_id': SPECIAL.index('<eos>')})):
        (directory / f'{name}.json').write_text(json.dumps(value, indent=1))
    (directory / 'chat_template.jinja').write_text(TEMPLATE)


def first_weights(model: Model, seed: int) -> Params:
    """Embeddings as large as the norms make activations, and blocks that hardly change them yet."""
    scales = {'embed': model.config.embed_dim**0.5, 'attention.o': 0.1, 'mlp.down': 0.1, 'head': 0.5}
    factors = {path: next((f for name, f in scales.items() if path.endswith(name)), 1.0) for path in model.shapes}
    return {path: np.asarray(w)[None] * factors[path] for path, w in model.init(seed).items()}  # type: ignore[misc]


class Clock:
    """Seconds of training, over all processes that worked on it one after another."""

    def __init__(self, place: epath.Path):
        self._place, self._began = place, time.monotonic()
        self._before = float(place.read_text()) if place.exists() else 0.0

    def tick(self) -> float:
        seconds = self._before + time.monotonic() - self._began
        self._place.parent.mkdir(parents=True, exist_ok=True)
        self._place.write_text(f'{seconds}')
        return seconds


def train(
    model: Model, stacked: Params, plans: Sequence[Plan], tokenizer: Tokenizer, directory: epath.Path
) -> tuple[Params, float]:
    """The weights after all rounds, and the seconds that these took. stacked: weights before, [1, ...]. directory:
    round i has -i behind its name.
    """
    clock = Clock(directory.parent / f'{directory.name}.seconds')
    for i, plan in enumerate(plans):
        trainer = Trainer(model, make_mesh(), plan.recipe)
        place = epath.Path(f'{directory}-{i}') if i else directory
        run = training_io.Run(place, {'model': repr(model.config), 'plan': repr(plan)}, every=500, keep=1)
        with tqdm(total=plan.recipe.steps, desc=place.name, unit='step') as bar:

            def progress(step: int, total: int, metrics: dict[str, Any], bar: Any = bar) -> None:
                bar.n = step
                bar.set_postfix_str(f'loss {metrics["loss"][0]:.3f}')
                clock.tick()

            state = training_io.train(trainer, trainer.start(stacked), Lessons(plan, tokenizer), run, progress)
        stacked = trainer.params(state)
    return {path: w[0] for path, w in stacked.items()}, clock.tick()


def examine(
    model: Model, params: Params, tokenizer: Tokenizer, sampling: Sampling, seed: int = 0, decode: DecodeConfig = DECODE
) -> dict[str, float]:
    """Accuracy by the number of steps, and in the wording that only `test` has."""
    new = decode.cache_length - decode.buckets[-1]
    engine = student_engine(model, params, make_mesh(), decode, seed, eos=sorted(tokenizer.eos_ids))
    found = {}
    for steps, split in [*((n, 'tune') for n in range(1, TARGET.steps[1] + 1)), (TARGET.steps[1], 'test')]:
        dataset = dataclasses.replace(TARGET, steps=(steps, steps), size=EXAM)
        exam = make_exam(dataset.prompts(split), tokenizer, Prompting(), reader_of(dataset), new, sampling)
        found[f'{split}-{steps}'] = next(iter(evaluate(engine, {'': params}, exam)))[1].accuracy
    return found


def save(
    place: epath.Path, model: Model, params: Params, write_tokenizer: Callable[[epath.Path], None],
    record: dict[str, Any],
) -> None:  # fmt: skip
    """Whole or not at all, so that a model that is there has its record, testbed.json."""

    def beside(directory: epath.Path) -> None:
        write_tokenizer(directory)
        (directory / 'testbed.json').write_text(json.dumps(record, indent=1))

    print(json.dumps({'model': place.name} | record))
    checkpoints.save_hf(str(place), model, jax.device_get(params), beside)


def make(name: str, shard: int, out: epath.Path) -> None:
    """Trains, examines and saves a model that is not there yet."""
    place = out / name
    if place.exists():
        print(f'{name} is there')
        return
    plans = make_plans(name, shard)
    write_tokenizer(out / 'tokenizer')
    tokenizer = load_tokenizer(str(out / 'tokenizer'))
    model = make_model(dataclasses.replace(PRESETS[name], vocab_size=tokenizer.size))
    params, seconds = train(model, first_weights(model, shard), plans, tokenizer, out / 'training' / name)
    found = examine(model, params, tokenizer, OPERATING)
    steps = sum(plan.recipe.steps for plan in plans)
    command = f'python -m tools.train_testbed --out=DIR --only={name}'  # the shard is the seed of weights and order too
    record = {'command': command, 'seed': shard, 'parameters': model.num_params, 'shard': shard, 'steps': steps}
    save(place, model, cast(params, 'float16'), write_tokenizer, record | {'seconds': seconds, 'accuracy': found})


def chosen(names: Sequence[str], models: Collection[str] = PRESETS) -> list[str]:
    for name in names:
        if name not in models:
            raise ConfigError(f'--only has {name!r}; the models are {list(models)}{hint(name, models)}')
    return list(names) or list(models)


def out_directory() -> epath.Path:
    if not _OUT.value:  # not a required flag: programs that only examine models import this one
        raise ConfigError('--out is missing; name the directory of the models')
    return epath.Path(_OUT.value)


def main() -> None:
    for name in chosen(_ONLY.value):
        make(name, list(PRESETS).index(name), out_directory())


if __name__ == '__main__':
    program.start(main)
