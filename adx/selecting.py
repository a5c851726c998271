"""The stage `select`: scores finished traces and writes which sample of a prompt is kept.

    private/scores/<nll or harm>/     journals of what the proxies say of each trace, saved batch by batch; `by` is the
                                      hash of what said it, and what others said is not read
    private/selections/<name>.jsonl   one line per prompt: the chosen request id, and all candidates
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from adx import directions, files, loading, storage, watch
from adx import experiment as experiments
from adx.batching import Example, batches
from adx.datasets.chat import encode_prompt
from adx.decoding.ensemble import Weights
from adx.errors import ConfigError, InputError, StorageError
from adx.experiment import Experiment
from adx.generation import Models
from adx.hashing import content_hash, row_key
from adx.journal import FORMAT_VERSION, Journal, cut_torn_tails, read_records, to_json
from adx.loading import Blueprint
from adx.policy import spares
from adx.selection import Scorer, Selection, matched, stated_answer
from adx.storage import Workdir
from adx.types import RequestId, Trace

OWNER = 'select'  # of the score journals
Prompts = dict[str, list[Trace]]  # 'dataset/split/row' -> its candidates by sample
Tell = Callable[[str, int, int], None]  # 'nll' or 'harm', how many traces are scored, of how many


class Chosen(NamedTuple):
    """What became of a selection, in prompts. others: those whose choice is not candidate 0; left_out: those of which a
    sample was rejected, since there is less to choose from."""

    prompts: int
    others: int
    left_out: int


def select(
    experiment: Experiment,
    path: str,
    tell: Tell = lambda kind, done, total: None,
) -> dict[str, Chosen]:
    """Makes every selection of the experiment, by name.

    Stopped at any moment it goes on where it was: scores are saved as they come, selections appear whole.
    Raises ConfigError, WorkdirError, and InputError for an arm that is not complete or a score that is no number.
    """
    experiments.check(experiment)
    if not experiment.selections:
        raise ConfigError('--stages=select has nothing to do: selections is empty; add a Selection to it')
    workdir = storage.of_experiment(path, experiments.experiment_hash(experiment))
    with storage.held(workdir, 'select', ('selections', 'scores', 'scores/nll', 'scores/harm')):
        arms = {selection.arm for selection in experiment.selections}
        found = {arm: _candidates(workdir, arm, experiment.samples) for arm in sorted(arms)}
        candidates = {arm: prompts for arm, (prompts, _) in found.items()}
        scores = {}
        for kind in sorted({selection.score for selection in experiment.selections} - {''}):
            wanted = {selection.arm for selection in experiment.selections if selection.score == kind}
            traces = [trace for arm in sorted(wanted) for group in candidates[arm].values() for trace in group]
            scores[kind] = _scores(experiment, workdir, kind, traces, tell)
        return {
            one.name: Chosen(*_write(experiment, workdir, one, candidates[one.arm], scores), found[one.arm][1])
            for one in experiment.selections
        }


def _candidates(workdir: Workdir, arm: str, samples: int) -> tuple[Prompts, int]:
    """The traces of an arm by prompt and sample, and how many prompts are left out because a sample was rejected.

    Raises InputError unless all others have every sample.
    """
    found: dict[str, dict[int, Trace]] = {}
    for trace in workdir.traces():
        id_ = RequestId.parse(trace.request_id)
        if id_.setting == arm:
            found.setdefault(id_.prompt_id, {})[id_.sample] = trace
    done = {trace.request_id for group in found.values() for trace in group.values()}
    is_whole, there = watch.tally(workdir, arm, done)
    rejected = {RequestId.parse(id_) for id_ in set(workdir.rejected()) - done}
    short = {id_.prompt_id for id_ in rejected if id_.setting == arm}
    found = {prompt: group for prompt, group in found.items() if prompt not in short}
    if not is_whole or not found or any(len(group) != samples for group in found.values()):
        raise InputError(
            f'arm {arm!r} has {there} and a selection is made among all {samples} samples of each prompt; finish '
            '--stages=generate first'
        )
    prompts = {prompt: [group[sample] for sample in sorted(group)] for prompt, group in sorted(found.items())}
    return prompts, len(short)


def _scores(
    experiment: Experiment, workdir: Workdir, kind: str, traces: Sequence[Trace], tell: Tell
) -> dict[str, list[float]]:
    """Request id -> what each proxy, or direction, says. Models are loaded only if some trace has no scores yet."""
    directory = workdir.private / 'scores' / kind
    cut_torn_tails(directory, OWNER)
    by = _scorer_hash(experiment, workdir, kind)
    records = [record for _, record in read_records(directory) if record.get('by') == by]
    known: dict[str, list[float]] = {record['request_id']: record['scores'] for record in records}
    left = [trace for trace in traces if trace.request_id not in known]
    policies = {trace.request_id: trace.policy for trace in left}
    if not left:
        return known
    plan = loading.blueprint(experiment)
    scorer = _scorer(experiment, workdir, plan, kind)
    prompts = (encode_prompt(trace.messages, plan.tokenizer, experiment.prompting) for trace in left)
    examples = [Example(trace.request_id, ids, trace.tokens) for trace, ids in zip(left, prompts, strict=True)]
    with contextlib.closing(Journal(directory, OWNER)) as journal:
        for inside, batch in batches(examples, scorer.rows):
            scored = dict(zip((one.id for one in inside), scorer(batch).T.tolist(), strict=False))
            _check_finite(kind, scored)
            lines = ({'request_id': i, 'scores': of, 'policy': policies[i], 'by': by} for i, of in scored.items())
            journal.append([to_json({'format_version': FORMAT_VERSION} | line) for line in lines])
            known |= scored
            tell(kind, len(traces) - len(left) + sum(example.id in known for example in examples), len(traces))
    return known


def _scorer_hash(experiment: Experiment, workdir: Workdir, kind: str) -> str:
    """Of what scores: proxies by what is in their files, and for harm what their directions were taken on."""
    proxies = loading.proxy_hashes(experiment)
    along = directions.hashes(experiment, workdir.path) if kind == 'harm' else []
    return content_hash([proxies, along])


def _scorer(experiment: Experiment, workdir: Workdir, plan: Blueprint, kind: str) -> Scorer:
    groups, hashes = loading.load_proxies(experiment, plan)
    if kind == 'nll':
        return Scorer(plan.ensemble, groups, None, plan.members)
    models = Models(plan.ensemble, Weights({}, groups), plan.tokenizer, hashes)  # the teacher scores nothing
    weights = directions.load(experiment, workdir.path, plan, models).weights
    return Scorer(plan.ensemble, weights.groups, weights.directions, plan.members)


def _check_finite(kind: str, scored: dict[str, list[float]]) -> None:
    for id_, scores in scored.items():
        if not np.all(np.isfinite(scores)):
            raise InputError(f"{id_}: the proxies' {kind} is {scores}, not finite; check their weights and directions")


def _write(
    experiment: Experiment,
    workdir: Workdir,
    selection: Selection,
    prompts: Prompts,
    scores: dict[str, dict[str, list[float]]],
) -> tuple[int, int]:
    is_spared = spares(workdir.private / 'policies')
    records = [
        _choice(experiment, selection, prompt, traces, scores.get(selection.score, {}), is_spared(traces[0]))
        for prompt, traces in prompts.items()
    ]
    path = workdir.private / 'selections' / f'{selection.name}.jsonl'
    with files.os_errors(StorageError, f'{path} was not written, the scores are safe'):
        files.write_private(path, ''.join(f'{to_json(record)}\n' for record in records).encode())
    return len(records), sum(record['sample'] > 0 for record in records)


def _choice(
    experiment: Experiment,
    selection: Selection,
    prompt: str,
    traces: Sequence[Trace],
    scores: dict[str, list[float]],
    spared: bool,
) -> dict[str, Any]:
    """The line of one prompt. spared: its licence has no defence, so it is not given what harms a student most."""
    grade, gold = experiment.dataset.grade, traces[0].gold
    texts = [trace.text for trace in traces]
    kept = matched(texts, gold, grade) if selection.correctness_matched else [True] * len(traces)
    joined: Iterable[float] = [0.0] * len(traces)
    if selection.how == 'max_length':
        joined = [float(len(trace.tokens)) for trace in traces]
    elif selection.score:
        columns_MB = np.array([scores[trace.request_id] for trace in traces], np.float32).T
        joined = np.asarray(selection.join(jnp.asarray(columns_MB))).tolist()
    joined = list(joined)
    high, low = row_key(experiment.seed, prompt).tolist()
    index = 0 if spared and selection.is_defence else selection.choose(kept, joined, high << 32 | low)
    candidates = [
        {
            'request_id': trace.request_id,
            'tokens': len(trace.tokens),
            'score': joined[i],
            'proxies': scores.get(trace.request_id, []),
            'answer': stated_answer(trace.text, gold),
            'right': None if gold is None else grade(trace.text, gold),
            'kept': kept[i],
        }
        for i, trace in enumerate(traces)
    ]
    chosen = {'prompt': prompt, 'request_id': traces[index].request_id, 'sample': index, 'how': selection.how}
    return {'format_version': FORMAT_VERSION} | chosen | {'policy': traces[index].policy, 'candidates': candidates}
