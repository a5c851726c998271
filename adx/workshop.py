"""What rewriters are handed: the models of a run, read when they are first asked."""

from __future__ import annotations

import dataclasses
import functools
import math
import random
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from adx import directions, equations, generation, instructions, keys, loading, marks
from adx.answers import reader_of
from adx.batching import Example, batches, one_batch
from adx.datasets.chat import encode_conversation, split_reasoning
from adx.drafts import Draft, Tools
from adx.editing import Editor, Proxy
from adx.evaluation import Likelihood, roomy
from adx.experiment import Arm, Experiment
from adx.frames import frame, reasoning_span, reasoning_words, without_thinking
from adx.gates import Senses
from adx.hashing import content_hash
from adx.loading import Blueprint
from adx.marks import Pair
from adx.models.transformer import Model, Params
from adx.rewriters import gradient
from adx.rewriters.gradient import Gradient
from adx.rewriters.marked import Marked
from adx.selection import Scorer
from adx.spans import token_pieces
from adx.storage import Workdir
from adx.types import POISONED, Prompt, RequestId, Trace

UNENDED, WINDOW, OTHERWISE = 'has no end', "longer than the model's window", 'is not read as it was written'
PROBLEMS = {'length': UNENDED, POISONED: 'the writer gave nan or inf'}  # by what ended a draft


class Workshop:
    """The tools of one workdir. Models stay loaded once they were asked for."""

    def __init__(self, experiment: Experiment, path: str):
        self.experiment, self.path = experiment, path
        self._editor = functools.cache(self._make_editor)

    @property
    def tools(self) -> Tools:
        has_proxies = bool(self.experiment.proxies)
        return Tools(
            write=self._write,
            edit=self._edit if has_proxies else None,
            render=getattr(self.experiment.dataset, 'render', None),
            harm=self._harm if has_proxies else None,
            mark=self._mark,
            line=lambda traces, settings: [pair.line if pair else '' for pair, _ in self._pairs(traces, settings)],
            instruction=lambda: instructions.best(Workdir(self.path)),
            frame=lambda trace: frame(trace.text, self.experiment.prompting),
        )

    @property
    def senses(self) -> Senses:
        e, tokenizer = self.experiment, self.plan.tokenizer
        return Senses(
            reader_of(e.dataset),
            lambda text: reasoning_words(text, e.prompting),
            lambda text: len(tokenizer.encode(text)),
            getattr(e.dataset, 'statements', equations.statements),
            tuple(tag for tag in (e.prompting.think_open, e.prompting.think_close) if tag),
        )

    def nll(self, pairs: Sequence[tuple[Trace, str]]) -> list[float]:
        """Nats a token of each text behind its trace's prompt, under the teacher."""
        examples = [self._example(str(i), one, text) for i, (one, text) in enumerate(pairs)]
        rows = self._likelihood.rows(self.models.weights.teacher, examples)
        return [nats / max(tokens, 1) for nats, tokens in rows]

    @functools.cached_property
    def plan(self) -> Blueprint:
        return loading.blueprint(self.experiment)

    @functools.cached_property
    def models(self) -> generation.Models:
        return loading.load_models(self.experiment, self.plan, whole=True)

    @functools.cached_property
    def _directed(self) -> generation.Models:
        """With the direction of every proxy, which `--stages=prepare` took."""
        return directions.load(self.experiment, self.path, self.plan, self.models)

    @functools.cached_property
    def _likelihood(self) -> Likelihood:
        return Likelihood(self.models.ensemble.teacher, self.plan.ensemble.teacher_layout)

    def _example(self, name: str, trace: Trace, text: str) -> Example:
        return Example(name, *encode_conversation(trace.messages, text, self.plan.tokenizer, self.experiment.prompting))

    # ------------------------------------------------------------------------------------------- writing

    def _write(self, asked: Sequence[str], samples: int, arm: str) -> list[list[Draft]]:
        writer, models = self._writer(arm)
        writer = dataclasses.replace(writer, samples=samples)
        prompts = [
            Prompt('rewriting', 'rewriting', content_hash(text), ({'role': 'user', 'content': text},)) for text in asked
        ]
        unique = list({prompt.row: prompt for prompt in prompts}.values())
        limits = models.ensemble.teacher.config.max_length, writer.max_new_tokens
        longest = dataclasses.replace(writer.decode, buckets=(limits[0] - limits[1],), cache_length=limits[0])
        made = generation.make_requests(dataclasses.replace(writer, decode=longest), unique, models.tokenizer)
        pending = list(made.requests.values())
        written: dict[str, list[Draft]] = {}
        if pending:
            of = dataclasses.replace(writer, decode=roomy(writer.decode, pending))
            done = {trace.request_id: trace for _, trace in generation.decode(of, models, made, pending)}
            for id_ in made.requests:
                text = without_thinking(done[id_].text, of.prompting)
                draft = Draft(text or '', PROBLEMS.get(done[id_].stop, UNENDED if text is None else ''))
                written.setdefault(id_.split('/')[2], []).append(draft)
        return [written.get(prompt.row, [Draft('', WINDOW)] * samples) for prompt in prompts]

    def _writer(self, arm: str) -> tuple[Experiment, generation.Models]:
        """The experiment in which the rewriting model alone is asked, under an arm of the run's or plainly."""
        e = self.experiment
        arms = [one for one in e.arms if one.name == arm] or [Arm('writer', sampling=e.arms[0].sampling)]
        if e.rewriter is None:
            models = self._directed if arms[0].defence.wants_tangents else self.models
            return dataclasses.replace(e, arms=tuple(arms), policy=None), models
        return dataclasses.replace(self._alone, arms=tuple(arms)), self._other

    @property
    def _alone(self) -> Experiment:
        """The rewriting model as the teacher of its own run."""
        e = self.experiment
        assert e.rewriter is not None
        return dataclasses.replace(
            e, teacher=e.rewriter, prompting=e.rewriter_prompting or e.prompting, proxies=(), arms=(Arm('writer'),),
            policy=None, selections=(), rewrites=(),
        )  # fmt: skip

    @functools.cached_property
    def _other(self) -> generation.Models:
        return loading.load_models(self._alone, loading.blueprint(self._alone))

    # ------------------------------------------------------------------------------------------- editing

    def _edit(self, traces: Sequence[Trace], settings: Gradient) -> list[list[Draft]]:
        ensemble, by_id = self.plan.ensemble, {one.request_id: one for one in traces}
        models = [ensemble.teacher, *(group.model for group in ensemble.groups)]
        fitting = _fitting([self._example(one.request_id, one, one.text) for one in traces], models)
        found: dict[str, list[Draft]] = {}
        if fitting:
            inside, batch = sorted(fitting), one_batch(fitting)
            editable_BL = np.zeros(batch.tokens_BL.shape, bool)
            spans = [slice(len(x.prompt), len(x.prompt) + len(x.completion)) for x in inside]
            for row, example in enumerate(inside):
                editable_BL[row, spans[row]] = self._editable(by_id[example.id].text, example.completion, settings)
            tokens_RBL = self._editor(settings)(batch, editable_BL).tokens
            for row, example in enumerate(inside):
                states = dict.fromkeys(tuple(tokens_BL[row, spans[row]].tolist()) for tokens_BL in tokens_RBL[::-1])
                found[example.id] = [self._spelt(state) for state in states if state != example.completion]
        return [found.get(one.request_id, [Draft('', WINDOW)]) for one in traces]

    def _editable(self, text: str, completion: Sequence[int], settings: Gradient) -> list[bool]:
        pieces = token_pieces(self.plan.tokenizer.decode, completion)
        reasoning = len(split_reasoning(text, self.experiment.prompting)[0])
        return gradient.editable(completion, pieces, reasoning, self._words, settings.protected)

    def _spelt(self, completion: Sequence[int]) -> Draft:
        """The text of these tokens; where it is read as others, another text was evaluated than would be learned."""
        tokenizer = self.plan.tokenizer
        text, inside = tokenizer.decode(completion), [i for i in completion if i not in tokenizer.eos_ids]
        return Draft(text, '' if tokenizer.encode(text) == inside else OTHERWISE)

    @functools.cached_property
    def _words(self) -> np.ndarray:
        tokenizer = self.plan.tokenizer
        return gradient.word_mask(tokenizer.token_bytes, tokenizer.control_ids, self.plan.vocab_rows)

    def _make_editor(self, settings: Gradient) -> Editor:
        teacher = self.models.ensemble.teacher, self.models.weights.teacher
        return Editor(settings, self._proxies(settings), teacher, self._words, self.plan.ensemble.teacher_layout)

    def _proxies(self, settings: Gradient) -> list[Proxy]:
        along: Sequence[Params] = ()
        held = None
        if settings.objective == 'bilevel':
            kept = directions.holdout_examples(self.experiment, self.path, self.plan.tokenizer)
            held = one_batch(kept[: settings.holdout])
        elif settings.objective in ('harm', 'difference'):
            along = self._directed.weights.directions
        found: dict[int, Proxy] = {}
        for i, (group, members) in enumerate(zip(self.plan.ensemble.groups, self.plan.members, strict=True)):
            for n, member in enumerate(members):
                own = directions.member(self.models, self.plan.members, member)
                # Harm is linear in the direction: along the mean of several it is the mean of theirs.
                g = {path: jnp.mean(x[n], axis=0) for path, x in along[i].items()} if along else held
                found[member] = Proxy(group.model, own, g)
        return [found[i] for i in sorted(found)]

    # ------------------------------------------------------------------------------------------- marking

    def _pairs(self, traces: Sequence[Trace], settings: Marked) -> list[tuple[Pair | None, random.Random]]:
        """The pair that each trace is to carry, of those whose symbols it and its prompt do not use, if there is one;
        and what draws the places.
        """
        forge = getattr(self.experiment.dataset, 'forge', marks.symbols)
        key = keys.served(settings.customer, settings.epoch)
        pairs = marks.draw_pairs(key, settings.pairs, forge)
        draws = [marks.keyed_draw(key, f'trace/{RequestId.parse(one.request_id).noise_name}') for one in traces]
        free = [marks.free(pairs, ' '.join([*(m['content'] for m in one.messages), one.text])) for one in traces]
        return [(draw.choice(of) if of else None, draw) for of, draw in zip(free, draws, strict=True)]

    def _mark(self, traces: Sequence[Trace], settings: Marked) -> list[list[Draft]]:
        found = []
        for one, (pair, draw) in zip(traces, self._pairs(traces, settings), strict=True):
            assert pair, 'who asks has seen that there is a line'
            begin, end = reasoning_span(one.text, self.experiment.prompting)
            places = marks.places(one.text, end, begin)
            tried = draw.sample(places, min(settings.tries, len(places)))
            found.append([Draft(marks.put(one.text, place, pair)) for place in tried])
        return found

    # ---------------------------------------------------------------------------------------------- harm

    def _harm(self, traces: Sequence[Trace], texts: Sequence[Sequence[str]]) -> list[list[float]]:
        """The mean over the proxies, and their directions, of each text's harm, see selection.py; nan, which is above
        nothing, where a proxy's window does not hold it.
        """
        examples = [
            self._example(f'{i}/{j}', one, text)
            for i, (one, mine) in enumerate(zip(traces, texts, strict=True))
            for j, text in enumerate(mine)
        ]
        scores = {example.id: math.nan for example in examples}
        fitting = _fitting(examples, [group.model for group in self.plan.ensemble.groups])
        for inside, batch in batches(fitting, self._scorer.rows):
            values_B = np.mean(self._scorer(batch), axis=0).tolist()
            scores |= zip((example.id for example in inside), values_B, strict=False)
        return [[scores[f'{i}/{j}'] for j in range(len(mine))] for i, mine in enumerate(texts)]

    @functools.cached_property
    def _scorer(self) -> Scorer:
        weights = self._directed.weights
        return Scorer(self.plan.ensemble, weights.groups, weights.directions, self.plan.members)


def _fitting(examples: Sequence[Example], models: Sequence[Model]) -> list[Example]:
    """Those that every model's window holds."""
    limit = min(model.config.max_length for model in models)
    return [one for one in examples if len(one.prompt) + len(one.completion) <= limit]
