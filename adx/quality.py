"""The quality of an arm's traces as an honest reader gets them, and who is eligible."""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from adx import equations, grading
from adx.answers import Reader
from adx.errors import InputError
from adx.evaluation import prompts_hash
from adx.lessons import question
from adx.outcomes import Quality
from adx.statistics import binomial_interval, paired_upper, t_interval
from adx.texts import repetition
from adx.types import RequestId, Trace

TAIL = 400  # characters of a text in an audit
LEVEL = 0.90  # of two-sided intervals: each end is then the one-sided 95 % bound that non-inferiority asks for
POINT = 0.01
LEAST_FORCED = 0.5  # of the clean arm's right answers that stay right when they are forced


@dataclasses.dataclass(frozen=True)
class Measures:
    """What traces are measured with; the same for every arm of a comparison.

    count_tokens: of a text, by the teacher's tokenizer. nll: per trace (nats, tokens) of its text under a model that
    is neither proxy nor teacher. statements: see equations.py; a testbed hands in its own grammar. slices: questions ->
    name -> the label of each.
    """

    reader: Reader
    count_tokens: Callable[[str], int]
    nll: Callable[[Sequence[Trace]], Sequence[tuple[float, int]]]
    statements: equations.Statements = equations.statements
    slices: Callable[[Sequence[str]], Mapping[str, tuple[str, ...]]] = lambda questions: {}


def ordered(traces: Sequence[Trace]) -> list[tuple[RequestId, Trace]]:
    """One arm's traces by prompt. Raises InputError where there are none, arms are mixed, a prompt occurs twice, or a
    trace has no gold answer."""
    pairs = sorted(((RequestId.parse(trace.request_id), trace) for trace in traces), key=lambda pair: pair[0])
    if not pairs:
        raise InputError('there are no traces to measure; decode this arm first')
    arms = sorted({id_.setting for id_, _ in pairs})
    if len(arms) > 1:
        raise InputError(f'traces of the arms {arms} are mixed; measure one arm at a time')
    places = [id_[:3] for id_, _ in pairs]
    for (id_, trace), before in zip(pairs, [None, *places], strict=False):
        if trace.gold is None:
            raise InputError(f'{id_} has no gold answer, so it cannot be graded; measure rows that have one')
        if id_[:3] == before:
            raise InputError(f'{id_} is another sample of a prompt: they are not independent; measure one a prompt')
    return pairs


def measure(traces: Sequence[Trace], forced: Mapping[str, bool], measures: Measures) -> Quality:
    """The quality of one arm on one seed. forced: request id -> right after answer forcing; one that is missing
    could not be forced and is wrong."""
    pairs = ordered(traces)
    arm, own = [trace for _, trace in pairs], pairs[0][0].setting
    verdicts = [measures.reader.read(trace.text, trace.gold or '') for trace in arm]
    steps = [[true for _, true in measures.statements(trace.text)] for trace in arm]
    scored = measures.nll(arm)
    values: dict[str, Sequence[float]] = {
        'tokens': [len(trace.tokens) for trace in arm],
        'reasoning_tokens': [measures.count_tokens(trace.reasoning) for trace in arm],
        'finished': [trace.stop != 'length' for trace in arm],
        'repetition': [repetition(trace.tokens) for trace in arm],
        'statements': [len(true) for true in steps],
        'true_statements': [sum(true) for true in steps],
        'nats': [nats for nats, _ in scored],
        'scored_tokens': [tokens for _, tokens in scored],
    }
    by_prompt = {name: tuple(map(float, column)) for name, column in values.items()}
    kl_mean, kl_95 = divergence(arm)
    return Quality(
        arm=own, seed=arm[0].seed, prompts=prompts_hash(id_ for id_, _ in pairs),
        correct=tuple(verdict.strict for verdict in verdicts),
        forced=tuple(forced.get(trace.request_id, False) for trace in arm),
        lenient=tuple(verdict.lenient for verdict in verdicts),
        slices=dict(measures.slices([question(trace.messages) for trace in arm])),
        tokens=_mean(by_prompt['tokens']), reasoning_tokens=_mean(by_prompt['reasoning_tokens']),
        finished=_mean(by_prompt['finished']), repetition=_mean(by_prompt['repetition']),
        true_steps=_ratio(by_prompt['true_statements'], by_prompt['statements']),
        unparsed=_mean([not verdict.forms for verdict in verdicts]),
        several=_mean([verdict.forms > 1 for verdict in verdicts]),
        first_differs=_mean([verdict.first_differs for verdict in verdicts]),
        nll=_ratio(by_prompt['nats'], by_prompt['scored_tokens']), kl_mean=kl_mean, kl_95=kl_95,
        timed_out=_mean([verdict.timed_out for verdict in verdicts]),
        fallback=sum(sum(one.statistics.get('fallback', ())) for one in arm) / max(1, sum(values['tokens'])),
        by_prompt=by_prompt,
    )  # fmt: skip


def divergence(traces: Sequence[Trace]) -> tuple[float, float]:
    """Mean and 95th percentile of the recorded KL from the teacher, nats a token over all tokens; nan where a trace
    has no record."""
    if any(len(trace.statistics.get('kl', ())) != len(trace.tokens) for trace in traces):
        return math.nan, math.nan
    kls = np.array([kl for trace in traces for kl in trace.statistics['kl']])
    if not kls.size:
        return math.nan, math.nan
    return float(kls.mean()), float(np.quantile(kls, 0.95, method='inverted_cdf'))


Numbers = Sequence[float] | np.ndarray  # one a prompt
Columns = Mapping[str, Numbers]


class Criterion(NamedTuple):
    """One condition of eligibility. It holds where the whole interval [low, high] lies within limit, so what too few
    prompts leave open does not hold. nan: nothing was there to measure."""

    name: str
    value: float
    low: float
    high: float
    limit: tuple[float, float]
    holds: bool

    @property
    def is_unknown(self) -> bool:
        return math.isnan(self.value)


def eligibility(defended: Sequence[Quality], clean: Sequence[Quality]) -> list[Criterion]:
    """Every criterion that a defence must meet to carry a headline, against the clean arm on the same prompts.

    One Quality a seed of both arms. The unit is the prompt, whose samples of several seeds depend on one another: it
    counts once, by its mean over the seeds that were asked it; seeds whose prompts differ share none. Losses and
    changes are in [-1, 1] (0.01 is a point), paired by prompt; ratios are defended over clean. Intervals have LEVEL. A
    ratio of totals and a share of pooled counts (true steps) vary from prompt to prompt: their interval is a t interval
    of the estimate's linearisation, because the steps and tokens of one trace depend on one another and a binomial
    interval over them would be too short.
    Raises InputError where the two were not measured on the same prompts and seed, or on fewer than 2.
    """
    asked = [[(one.seed, one.prompts) for one in arm] for arm in (defended, clean)]
    if asked[0] != asked[1]:
        raise InputError(
            f'{defended[0].arm!r} and {clean[0].arm!r} were measured on other prompts or seeds; measure both on the '
            'same'
        )
    if len(clean[0].correct) < 2:
        raise InputError(f'{clean[0].arm!r} has {len(clean[0].correct)} prompt; an interval needs at least 2')
    new, old = per_prompt(defended), per_prompt(clean)
    return [
        _accuracy('accuracy_loss', old['correct'], new['correct']),
        forced_loss(old, new),
        _relative('tokens', new['tokens'], old['tokens'], (0.8, 1.25)),
        _relative('retention', new['reasoning_tokens'], old['reasoning_tokens'], (0.8, math.inf)),
        _change('finished', _minus(new['finished'], old['finished'])),
        _change('repetition', _minus(new['repetition'], old['repetition'])),
        _perplexity(new, old),
        _true_steps(new, old),
    ]


def per_prompt(of: Sequence[Quality]) -> Columns:
    """'correct', 'forced' and what is kept by prompt, each as the mean over the seeds that were asked the prompt: what
    is a ratio of totals over prompts stays that ratio.
    """
    by_prompts: dict[str, list[dict[str, Numbers]]] = {}
    for one in of:
        judged: dict[str, Numbers] = {'correct': one.correct, 'forced': one.forced}
        by_prompts.setdefault(one.prompts, []).append(judged | one.by_prompt)
    groups = list(by_prompts.values())
    return {
        name: np.concatenate([np.mean([np.asarray(column[name]) for column in group], axis=0) for group in groups])
        for name in groups[0][0]
    }


def forced_loss(clean: Columns, defended: Columns) -> Criterion:
    """Points of answers that are right when the traces' own decoder is forced to give them. Where it loses most answers
    behind clean traces, nothing was measured: nobody can lose what was never there.
    """
    if np.sum(clean['forced']) < LEAST_FORCED * np.sum(clean['correct']):
        return _unmeasured('forced_accuracy_loss', (-math.inf, POINT), False)
    return _accuracy('forced_accuracy_loss', clean['forced'], defended['forced'])


def _accuracy(name: str, clean: Numbers, defended: Numbers) -> Criterion:
    """A loss of at most a point: teacher non-inferiority, so only the upper end is limited."""
    value, low, high = _interval(_minus(clean, defended))
    high = max(high, paired_upper(clean, defended))
    return Criterion(name, value, low, high, (-math.inf, POINT), high < POINT)


def _change(name: str, differences: np.ndarray) -> Criterion:
    return _criterion(name, _interval(differences), (-POINT, POINT))


def _relative(name: str, new: Numbers, old: Numbers, limit: tuple[float, float]) -> Criterion:
    ratio = _ratio(new, old)
    if math.isnan(ratio):
        return _unmeasured(name, limit, not sum(new))
    change = t_interval(_influence(new, old), LEVEL)
    return _criterion(name, (ratio, ratio + change.low, ratio + change.high), limit)


def _perplexity(new: Columns, old: Columns) -> Criterion:
    name, limit = 'perplexity', (0.0, 1.25)
    columns = [(arm['nats'], arm['scored_tokens']) for arm in (new, old)]
    after, before = (_ratio(*column) for column in columns)
    if math.isnan(after - before):
        return _unmeasured(name, limit, False)
    change = t_interval(_influence(*columns[0]) - _influence(*columns[1]), LEVEL)
    return _criterion(name, tuple(math.exp(after - before + x) for x in (0.0, change.low, change.high)), limit)


def _true_steps(new: Columns, old: Columns) -> Criterion:
    name, limit = 'true_steps', (-POINT, POINT)
    columns = [(arm['true_statements'], arm['statements']) for arm in (new, old)]
    after, before = (_ratio(*column) for column in columns)
    if math.isnan(after) and not math.isnan(before):  # all of them are lost
        return Criterion(name, -1.0, -1.0, -1.0, limit, False)
    if math.isnan(before):
        return _unmeasured(name, limit, math.isnan(after))
    change = after - before
    _, low, high = _interval(_influence(*columns[0]) - _influence(*columns[1]))
    return _criterion(name, (change, change + low, change + high), limit)


def _criterion(name: str, found: Sequence[float], limit: tuple[float, float]) -> Criterion:
    value, low, high = found
    return Criterion(name, value, low, high, limit, bool(limit[0] <= low and high <= limit[1]))


def _unmeasured(name: str, limit: tuple[float, float], holds: bool) -> Criterion:
    """holds: whether neither arm has anything of the kind, so that nothing changed."""
    return Criterion(name, math.nan, math.nan, math.nan, limit, holds)


def _interval(differences: np.ndarray) -> tuple[float, float, float]:
    """(mean, low, high) of paired differences in [-1, 1].

    Where all are 0 a t interval has no width, whatever their number, and where a few are not it is too short: at least
    it reaches as far as the exact bound for no changed prompt in n.
    """
    found, bound = t_interval(differences, LEVEL), binomial_interval(0, len(differences), LEVEL).high
    half = max(found.high - found.value, bound)
    return found.value, found.value - half, found.value + half


def _minus(a: Numbers, b: Numbers) -> np.ndarray:
    return np.asarray(a, float) - np.asarray(b, float)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _ratio(tops: Numbers, bottoms: Numbers) -> float:
    """Of the totals; nan over nothing."""
    return math.fsum(tops) / math.fsum(bottoms) if math.fsum(bottoms) else math.nan


def _influence(tops: Numbers, bottoms: Numbers) -> np.ndarray:
    """How far each unit moves the ratio of the totals, to first order, as if it were a mean: they sum to 0."""
    top, bottom = np.asarray(tops, float), np.asarray(bottoms, float)
    return (top - _ratio(tops, bottoms) * bottom) / bottom.mean()


def audit(traces: Sequence[Trace], reader: Reader, seed: int = 0, count: int = 100) -> list[dict[str, Any]]:
    """`count` random extractions of one arm for a reader's eye, all where there are fewer, in the order of their ids.

    Rows: id, tail (the end of the text), strict and lenient (what is extracted, None for nothing), gold, right.
    """
    pairs = ordered(traces)
    chosen = sorted(random.Random(seed).sample(range(len(pairs)), min(count, len(pairs))))
    rows = []
    for id_, trace in (pairs[i] for i in chosen):
        forms = reader.stated(trace.text, trace.gold or '')
        rows.append({
            'id': str(id_), 'tail': trace.text[-TAIL:], 'strict': forms[-1] if forms else None,
            'lenient': grading.extract(trace.text, strict=False), 'gold': trace.gold,
            'right': reader.read(trace.text, trace.gold or '').strict,
        })  # fmt: skip
    return rows
