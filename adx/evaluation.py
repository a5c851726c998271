"""What a student is worth: accuracy, loss on clean traces, divergence from the teacher.

Students of one architecture share the compiled programs: their weights are arguments.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from adx import answers, batching, losses, numerics
from adx.answers import Reader
from adx.batching import Batch, Example
from adx.datasets.chat import Prompting, encode_prompt
from adx.datasets.tokenizing import Tokenizer
from adx.decoding.engine import DecodeConfig, Engine
from adx.decoding.ensemble import Ensemble, Weights
from adx.defences import Undefended
from adx.errors import ConfigError
from adx.hashing import content_hash
from adx.lessons import Lesson
from adx.mesh import Layout, teacher_layout
from adx.models.transformer import Model, Params
from adx.types import Array, Prompt, Request, RequestId, Sampling

ROWS = 8  # traces of one scoring batch, per piece of the mesh that rows are split into


@dataclasses.dataclass(frozen=True)
class Exam:
    """Prompts as one student reads them. golds: their answers; read: tokens of an answer -> its text."""

    requests: tuple[Request, ...]
    golds: tuple[str, ...]
    reader: Reader
    read: Callable[[Sequence[int]], str]

    @property
    def prompts(self) -> str:
        """A hash of the ids of the prompts, in order."""
        return prompts_hash([request.id for request in self.requests])


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """One student on one exam. correct: by strict grading, a bool a prompt in the exam's order.

    rates: shares of the answers in [0, 1]: 'unparsed' (no final-answer form), 'truncated' (cut by length), 'lenient'
    (right by lenient extraction), 'timed_out' (the grader ran out of time: wrong).
    """

    correct: tuple[bool, ...]
    rates: dict[str, float]
    prompts: str

    @property
    def accuracy(self) -> float:
        """In [0, 1]."""
        return sum(self.correct) / len(self.correct)


def prompts_hash(ids: Iterable[RequestId]) -> str:
    """Of the places in the data, in order; settings and samples are left out."""
    return content_hash([id_.prompt_id for id_ in ids])


def make_exam(
    prompts: Sequence[Prompt],
    tokenizer: Tokenizer,
    prompting: Prompting,
    reader: Reader,
    max_new_tokens: int,
    sampling: Sampling = Sampling(temperature=0.0),  # noqa: B008
) -> Exam:
    """The exam of these prompts; greedy unless `sampling` says otherwise.

    Raises InputError where there are no prompts, one has no gold answer, or a template refuses one.
    """
    golds = answers.golds(prompts)
    requests = tuple(
        Request(
            RequestId(prompt.dataset, prompt.split, prompt.row, 0, 'student'),
            encode_prompt(prompt.messages, tokenizer, prompting), max_new_tokens, sampling, Undefended(), False,
        )
        for prompt in prompts
    )  # fmt: skip
    return Exam(requests, tuple(golds), reader, tokenizer.decode)


def with_shots(prompts: Sequence[Prompt], shown: Sequence[Lesson]) -> list[Prompt]:
    """The prompts behind worked examples, each a turn of the same chat; a prompt's own example is left out."""
    found = []
    for prompt in prompts:
        turns = [
            (*lesson.messages, {'role': 'assistant', 'content': lesson.text})
            for lesson in shown
            if lesson.messages != prompt.messages
        ]
        found.append(dataclasses.replace(prompt, messages=(*itertools.chain(*turns), *prompt.messages)))
    return found


def roomy(decode: DecodeConfig, requests: Sequence[Request]) -> DecodeConfig:
    """The shapes of `decode`, but with room for prompts as long as these and all that follows them."""
    longest = max(len(request.tokens) for request in requests)
    length = longest + max(request.max_new_tokens for request in requests)
    return dataclasses.replace(decode, buckets=(longest,), cache_length=length, short_caches=(), record='none')


def student_engine(
    model: Model, params: Params, mesh: Mesh, config: DecodeConfig, seed: int, eos: Sequence[int]
) -> Engine:
    """An engine for students of this architecture, `params` the first of them."""
    ensemble = Ensemble(model, teacher_layout(mesh, model.config.sizes))
    return Engine(ensemble, Weights(_place(ensemble, params), ()), config, seed, eos)


def evaluate(engine: Engine, students: Mapping[str, Params], exam: Exam) -> Iterator[tuple[str, Evaluation]]:
    """Every student on the same exam under the same noise, one after the other, with the engine's one program.

    Raises ConfigError for weights of another architecture, InputError for a prompt that the engine cannot serve.
    """
    for name, params in students.items():
        seat(engine, name, params)
        yield name, _grade(engine, exam)


def seat(engine: Engine, name: str, params: Params) -> None:
    """Lets the engine decode with the weights of another student, which `name` names in an error."""
    _check_fits(name, params, engine.ensemble.teacher)
    engine.weights = Weights(_place(engine.ensemble, params), ())


def _check_fits(name: str, params: Params, model: Model) -> None:
    shapes = {path: tuple(w.shape) for path, w in params.items()}
    if shapes != model.shapes:
        other = sorted(path for path in {*shapes, *model.shapes} if shapes.get(path) != model.shapes.get(path))
        raise ConfigError(
            f'student {name!r} is of another architecture than its engine: {other[0]} is {shapes.get(other[0])} and '
            f'{model.shapes.get(other[0])} is wanted; evaluate it with an engine of its own'
        )


def _place(ensemble: Ensemble, params: Params) -> Params:
    layout, axes = ensemble.teacher_layout, ensemble.teacher.axes
    return {path: jax.device_put(w, layout.sharding(axes[path])) for path, w in params.items()}


def _grade(engine: Engine, exam: Exam) -> Evaluation:
    done = {str(completion.id): completion for completion in engine.generate(exam.requests)}
    completions = [done[str(request.id)] for request in exam.requests]
    texts = [exam.read(completion.tokens) for completion in completions]
    verdicts = [exam.reader.read(text, gold) for text, gold in zip(texts, exam.golds, strict=True)]
    rates = {
        'unparsed': [not verdict.forms for verdict in verdicts],
        'truncated': [completion.stop == 'length' for completion in completions],
        'lenient': [verdict.lenient for verdict in verdicts],
        'timed_out': [verdict.timed_out for verdict in verdicts],
    }
    correct = tuple(verdict.strict for verdict in verdicts)
    return Evaluation(correct, {name: sum(held) / len(held) for name, held in rates.items()}, exam.prompts)


class Likelihood:
    """The compiled NLL of models of one architecture on completions, as sums in nats and counts of tokens."""

    def __init__(self, model: Model, layout: Layout | None = None):
        """layout: by which rows are split over the devices that hold the params; absent for one device."""
        self._layout, ways = layout, layout.ways('B') if layout else 1
        self._rows = ROWS * ways
        self._sums = jax.jit(lambda params, batch: _row_sums(_token_losses(model, params, batch, ways), batch))

    def rows(self, params: Params, examples: Sequence[Example]) -> list[tuple[float, int]]:
        """(nats, tokens) of each example's completion, in order. Ids must differ."""
        found: dict[str, tuple[float, int]] = {}
        for inside, batch in batching.batches(examples, self._rows):
            sums_B, counts_B = map(np.asarray, self._sums(params, batch.on(self._layout)))
            numbers = zip(sums_B.tolist(), counts_B.tolist(), strict=True)
            found |= zip((example.id for example in inside), numbers, strict=False)  # rows without targets pad a batch
        return [found[example.id] for example in examples]

    def mean(self, params: Params, examples: Sequence[Example]) -> float:
        """Nats per token over all tokens: the validation NLL where the examples are clean holdout traces."""
        return token_mean(self.rows(params, examples))


class Divergence:
    """The compiled mean KL(teacher || student) in nats a token, on completions of the teacher."""

    def __init__(self, teacher: Model, student: Model):
        sizes = teacher.config.vocab_size, student.config.vocab_size
        if sizes[0] != sizes[1]:
            raise ConfigError(
                f'teacher and student have vocabularies of {sizes[0]} and {sizes[1]}: their distributions cannot be '
                'compared token by token; leave the KL out for this student'
            )
        self.vocab = sizes[0]
        self._sums = jax.jit(
            lambda teacher_params, params, batch: _row_sums(
                self._kls((teacher, teacher_params), (student, params), batch), batch
            )
        )

    def mean(self, teacher_params: Params, params: Params, examples: Sequence[Example]) -> float:
        """Over all tokens of all completions."""
        rows: list[tuple[float, int]] = []
        for _, batch in batching.batches(examples, ROWS):
            sums_B, counts_B = map(np.asarray, self._sums(teacher_params, params, batch))
            rows += zip(sums_B.tolist(), counts_B.tolist(), strict=True)
        return token_mean(rows)

    def _kls(self, teacher: tuple[Model, Params], student: tuple[Model, Params], batch: Batch) -> Array:
        def row(xs: tuple[Array, Array]) -> Array:
            pairs = zip((teacher, student), xs, strict=True)
            # Padded rows of a vocabulary may differ between the two; no token is there.
            p_BLV, q_BLV = (
                numerics.log_softmax(model.apply(params, x_BLD, method='unembed')[..., : self.vocab])
                for (model, params), x_BLD in pairs
            )
            return numerics.kl(p_BLV, q_BLV)

        given = tuple(hidden(model, params, batch) for model, params in (teacher, student))
        kls_BL = batching.map_rows(row, given, ways=1)
        return jnp.where(losses.predicting(jnp.asarray(batch.targets_BL)), kls_BL, 0.0)


def token_mean(rows: Sequence[tuple[float, int]]) -> float:
    """Nats a token of (nats, tokens) rows; nan without a token."""
    tokens = sum(count for _, count in rows)
    return math.fsum(nats for nats, _ in rows) / tokens if tokens else math.nan


def hidden(model: Model, params: Params, batch: Batch) -> Array:
    """The last hidden states x_BLD of a batch."""
    tokens_BL = jnp.asarray(batch.tokens_BL)
    positions_BL = batching.positions(tokens_BL)
    return model.apply(params, tokens_BL, positions_BL, method='hidden')[0]


def _token_losses(model: Model, params: Params, batch: Batch, ways: int) -> Array:
    """losses_BL; logits exist `ways` rows at a time."""

    def few(rows: tuple[Array, Array, Array]) -> Array:
        x_BLD, tokens_BL, targets_BL = rows
        return losses.token_losses(model.apply(params, x_BLD, method='unembed'), tokens_BL, targets_BL)

    given = hidden(model, params, batch), jnp.asarray(batch.tokens_BL), jnp.asarray(batch.targets_BL)
    return batching.map_rows(few, given, ways)


def _row_sums(values_BL: Array, batch: Batch) -> tuple[Array, Array]:
    return jnp.sum(values_BL, axis=-1), jnp.sum(losses.predicting(jnp.asarray(batch.targets_BL)), axis=-1)
