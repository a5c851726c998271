"""What rewriting leaves of a run: what passes the gates, and what it does to likelihoods.

    python -m launch.run --config=configs/smollm2_rewrites.py --workdir=DIR --set=limit=4 \
        --stages=prepare,generate,rewrite
    python -m tools.bench.rewrites --config=configs/smollm2_rewrites.py --workdir=DIR --name=smollm2

For every rewrite: the share of traces that it changed, and of those the tokens of text over the original's and by
how many nats a token the teacher and each proxy find them less likely. Samples are traces. Why drafts were refused is
printed. Appends to results/rewrites.json; it trains nobody.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

from absl import app, flags

from adx import directions, rewrites_io
from adx.drafting import Rewrite
from adx.errors import InputError
from adx.evaluation import Likelihood
from adx.experiment import Experiment
from adx.storage import Workdir
from adx.types import RequestId, Trace
from adx.workshop import Workshop
from launch.config import load_config
from tools.bench import figures

_CONFIG = flags.DEFINE_string('config', '', 'An experiment with rewrites.', allow_override=True)
_WORKDIR = flags.DEFINE_string('workdir', '', 'Where they were made.', allow_override=True)
_NAME = flags.DEFINE_string('name', 'smollm2', 'Of the models, in the names of figures.', allow_override=True)
TABLE = 'rewrites'
Pair = tuple[Trace, Trace]  # the original, and as it was said


def pairs(experiment: Experiment, workdir: Workdir, one: Rewrite) -> list[Pair]:
    """Every original that a rewrite was made of, with what became of it."""
    originals, said = rewrites_io.originals(experiment, workdir, one.of), rewrites_io.rewritten(workdir, one.name)
    first = {RequestId.parse(trace.request_id).noise_name: trace for trace in originals}
    return [(first[RequestId.parse(trace.request_id).noise_name], trace) for trace in said]


def proxy_nll(shop: Workshop, index: int, texts: Sequence[tuple[Trace, str]]) -> list[float]:
    """Nats a token of each text behind its trace's prompt, under one proxy."""
    group = next(i for i, members in enumerate(shop.plan.members) if index in members)
    likelihood = Likelihood(shop.plan.ensemble.groups[group].model)
    examples = [shop._example(str(i), one, text) for i, (one, text) in enumerate(texts)]
    rows = likelihood.rows(directions.member(shop.models, shop.plan.members, index), examples)
    return [nats / max(tokens, 1) for nats, tokens in rows]


def measured(shop: Workshop, found: Sequence[Pair]) -> dict[str, tuple[list[float], str]]:
    """Figure -> samples and unit."""
    changed = [(old, new) for old, new in found if new.text != old.text]
    result = {'rewritten': ([len(changed) / len(found)], f'of {len(found)} traces')}
    if not changed:
        return result
    tokens = [[len(shop.plan.tokenizer.encode(one.text)) for one in pair] for pair in changed]
    result['length_ratio'] = [new / max(old, 1) for old, new in tokens], 'x the original'
    under = {'teacher': shop.nll} | {
        f'proxy{i}': functools.partial(proxy_nll, shop, i) for i in range(len(shop.experiment.proxies))
    }
    texts = [(old, one.text) for old, new in changed for one in (old, new)]
    for model, nll in under.items():
        both = nll(texts)
        result[f'nll_added_{model}'] = [b - a for a, b in zip(both[::2], both[1::2], strict=True)], 'nats a token'
    return result


def main(argv: Sequence[str]) -> None:
    del argv
    experiment, workdir = load_config(_CONFIG.value), Workdir(_WORKDIR.value)
    shop = Workshop(experiment, _WORKDIR.value)
    command = f'python -m tools.bench.rewrites --config={_CONFIG.value} --workdir=DIR --name={_NAME.value}'
    there = [one for one in experiment.rewrites if one.name in rewrites_io.names(workdir)]
    if not there:
        raise InputError(f'{_WORKDIR.value} has none of the rewrites of {_CONFIG.value}; run --stages=rewrite first')
    for one in there:
        for figure, (samples, unit) in measured(shop, pairs(experiment, workdir, one)).items():
            name = f'{figure}_{one.name}_{_NAME.value}'
            row = figures.append(TABLE, name, samples, unit=unit, goal='', command=command)
            print(f'{name}: {row["value"]:.3g} {unit} ({row["low"]:.3g} to {row["high"]:.3g}, n = {row["n"]})')
        refused = rewrites_io.tally(workdir, one.name)['refused']
        print(f'refused drafts of {one.name}: {", ".join(f"{n} for {why}" for why, n in refused.items()) or "none"}')


if __name__ == '__main__':
    app.run(main)
