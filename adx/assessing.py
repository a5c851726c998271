"""The stages `assess` and `report` of a study: the traces' quality, and the page of figures.

    private/quality/<seed>/<arm>.json    what an honest reader gets, see outcomes.Quality
    private/quality/costs/<seed>.json    seconds a token of every arm, timed side by side once
    private/report/report.html, .json    the figures; see reporting/
    private/report/audit.json            extractions of answers to check by hand, by arm; see quality.audit
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from etils import epath

from adx import (
    environments,
    equations,
    files,
    forcing,
    generation,
    loading,
    outcomes_io,
    pipeline,
    readings,
    rewrites_io,
    rewriting,
    storage,
    study_traces,
    timing,
    transfer,
)
from adx.answers import Reader, reader_of
from adx.bystander import Bystander
from adx.errors import ConfigError, InputError, StorageError, malformed
from adx.experiment import Experiment
from adx.journal import content_to_json, decode, read_content
from adx.lessons import question
from adx.outcomes import Outcome, Quality
from adx.processes import ALONE, Place
from adx.quality import Criterion, Measures, audit, eligibility, measure
from adx.reporting import page
from adx.reporting.agreement import agreement, damages
from adx.reporting.frontier import frontier
from adx.reporting.plan import Plan
from adx.reporting.rows import Row, Verdicts
from adx.reporting.slices import label_prompts
from adx.storage import Workdir
from adx.study import Study, attack_hashes, commitment, identity, study_hash
from adx.study_traces import seed_path
from adx.types import Trace

AGAIN = 'delete it and run --stages=assess again'
SHOWN = 5  # prompts whose traces stand side by side in the report
Tell = Callable[[str, int, int], None]  # 'seed <seed>', arms done, of how many


def assess(
    study: Study, path: str, tell: Tell = lambda name, done, total: None, share: Place = ALONE
) -> list[Quality]:
    """Measures what is missing, arm by arm, and returns the quality of every arm and seed so far.

    share: which of the seeds to work on.

    The first sample of every prompt is measured. Raises ConfigError where the study names no judge, InputError where
    traces are missing, WorkdirError while another process measures this share.
    """
    if study.judge is None:
        raise ConfigError('--stages=assess measures traces by a model that is neither teacher nor proxy; give `judge`')
    outcomes_io.claim(path, identity(study))
    with storage.held(Workdir(path), 'assess', ['quality'], (share.shard, share.num_shards)):
        for seed in study.seeds[share.shard :: share.num_shards]:
            if not all(_place(path, seed, arm).exists() for arm in study.arms):
                _assess(study, path, seed, tell)
    return qualities(study, path)


def _assess(study: Study, path: str, seed: int, tell: Tell) -> None:
    """One seed. What is measured already is not measured again; all arms get the seconds of one timing."""
    made = study_traces.read(study, path, seed)
    places = {arm: _place(path, seed, arm) for arm in study.arms}
    known = {arm: _read(place) for arm, place in places.items() if place.exists()}
    traces = {arm: list(study_traces.one_each(made[arm]).values()) for arm in study.arms if arm not in known}
    right, costs = _decoded(study, path, seed, list(itertools.chain(*traces.values())))
    measures, found = _measures(study), dict[str, Quality]()
    for arm, place in places.items():
        quality = known.get(arm) or measure(traces[arm], right, measures)
        quality = dataclasses.replace(quality, arm=arm)  # a selection's traces are called after its arm
        found[arm] = dataclasses.replace(quality, seconds=_seconds(study, quality, found, costs))
        with files.os_errors(StorageError, f'{place} was not written'):
            files.make_private_dir(place.parent)
            files.write_private(place, content_to_json('quality', dataclasses.asdict(found[arm])))
        tell(f'seed {seed}', len(found), len(places))


def _seconds(study: Study, of: Quality, before: Mapping[str, Quality], costs: Mapping[str, float]) -> float:
    """Of all traces: a rewrite takes those of what it rewrites, and its own time for every token of that."""
    origins = {one.name: before[one.of] for one in study.experiment.rewrites if one.of in before}
    origin = origins.get(of.arm)
    if origin is None:
        return costs.get(of.arm, 0.0) * of.tokens * len(of.correct)
    added = costs.get(of.arm, 0.0) * origin.tokens * len(origin.correct)
    return origin.seconds + added if origin.seconds else 0.0


def _decoded(
    study: Study, path: str, seed: int, traces: Sequence[Trace]
) -> tuple[dict[str, bool], dict[str, float]]:
    """What the models of a seed say: request id -> whether the answer is right that the arm's own decoder was made to
    give, and arm -> seconds a token; of a rewrite a token of what it rewrites.
    """
    own = study.of_seed(seed)
    experiment = _answering(own)
    models = pipeline.load_models(experiment, seed_path(path, seed), loading.blueprint(experiment))
    asked = generation.make_requests(experiment, generation.read_prompts(experiment), models.tokenizer)
    said = dict(forcing.force(experiment, models, asked, traces, study.forcing))
    right = forcing.grade(said, traces, reader_of(experiment.dataset))
    # A selection costs its candidates and what scores them: decoding does not tell.
    if own.selections:
        return right, {}
    place = Workdir(path).private / 'quality' / 'costs' / f'{seed}.json'
    if not place.exists():  # a second timing would be of another hour of the machine
        costs = timing.seconds_per_token(experiment, models, asked, [arm.name for arm in own.arms])
        costs |= rewriting.seconds_per_token(own, seed_path(path, seed)) if own.rewrites else {}
        with files.os_errors(StorageError, f'{place} was not written'):
            files.make_private_dir(place.parent)
            files.write_private(place, content_to_json('seconds', costs))
    return right, _read_costs(place, study.arms)


def _answering(experiment: Experiment) -> Experiment:
    """With an arm for every rewrite: what answers behind rewritten words is the decoder that served the original."""
    arms = {arm.name: arm for arm in experiment.arms}
    origins = arms | {one.name: arms[one.arm] for one in experiment.selections}
    for one in experiment.rewrites:
        origins[one.name] = dataclasses.replace(origins[one.of], name=one.name)
    added = (origins[one.name] for one in experiment.rewrites)
    return dataclasses.replace(experiment, arms=(*experiment.arms, *added), rewrites=())


def qualities(study: Study, path: str) -> list[Quality]:
    """Of every arm and seed that was assessed."""
    places = [_place(path, seed, arm) for seed in study.seeds for arm in study.arms]
    return [_read(place) for place in places if place.exists()]


def _place(path: str, seed: int, arm: str) -> epath.Path:
    return Workdir(path).private / 'quality' / str(seed) / f'{arm}.json'


def _read(place: epath.Path) -> Quality:
    fields = read_content(place, 'quality', dict, StorageError, AGAIN)
    with malformed(f'{place} is damaged', AGAIN, StorageError):
        # By the file's name: earlier versions noted the arm of a selection.
        return decode(Quality, fields | {'arm': place.stem})


def _read_costs(place: epath.Path, arms: Sequence[str]) -> dict[str, float]:
    """Arm -> seconds a token."""
    costs = read_content(place, 'seconds', dict, StorageError, AGAIN)
    with malformed(f'{place} is damaged', AGAIN, StorageError):
        return {arm: float(costs[arm]) for arm in arms}


def _measures(study: Study) -> Measures:
    dataset: Any = study.experiment.dataset
    teacher = loading.read_tokenizer(study.experiment.teacher.source)
    assert study.judge is not None
    return Measures(
        reader_of(dataset),
        lambda text: len(teacher.encode(text)),
        _judged_by(Bystander(study.judge)),
        getattr(dataset, 'statements', equations.statements),
        functools.partial(label_prompts, dataset),
    )


def _judged_by(judge: Bystander) -> Callable[[Sequence[Trace]], list[tuple[float, int]]]:
    return lambda traces: judge.nll([judge.example(one.request_id, one.messages, one.text) for one in traces])


def verdicts(study: Study, found: Sequence[Quality]) -> tuple[dict[str, list[Criterion]], dict[str, str]]:
    """Arm -> every criterion of eligibility, over all seeds on which it and the clean arm were assessed; and arm -> why
    it cannot be judged, as where a row was rejected in one of the two.
    """
    by_seed = {(one.seed, one.arm): one for one in found}
    judged: dict[str, list[Criterion]] = {}
    unjudged: dict[str, str] = {}
    for arm in sorted({one.arm for one in found} - {study.clean}):
        seeds = [s for s in study.seeds if (s, arm) in by_seed and (s, study.clean) in by_seed]
        sides = ([by_seed[seed, name] for seed in seeds] for name in (arm, study.clean))
        try:
            judged[arm] = eligibility(*sides) if seeds else []
        except InputError as error:
            judged[arm], unjudged[arm] = [], str(error)
    return judged, unjudged


@dataclasses.dataclass(frozen=True)
class Findings:
    """What the figures of a study follow from: students graded on its split, traces measured, arms judged."""

    plan: Plan
    outcomes: list[Outcome]
    qualities: list[Quality]
    verdicts: dict[str, list[Criterion]]
    unjudged: dict[str, str] = dataclasses.field(default_factory=dict)  # arm -> why

    def rows(self) -> list[Row]:
        return frontier(self.outcomes, self.qualities, self.plan, self.verdicts)


def find(study: Study, path: str) -> Findings:
    """Everything that was found so far. Raises StorageError where a file cannot be read, WorkdirError for a workdir of
    another study or outcomes of other attacks of the same names, ConfigError for students of the split test by another
    commitment than the one that was frozen.
    """
    outcomes_io.check_study(path, identity(study))
    known, found = outcomes_io.read(path), qualities(study, path)
    outcomes_io.check_same(known, attack_hashes(study), {})
    names = tuple(attack.name for attack in study.attacks if attack.name not in study.ladder)
    graded = [known[name] for name in sorted(known) if known[name].split == study.split]
    if graded and study.split == 'test':  # figures are held to what was promised before it was read
        readings.check_frozen(path, commitment(study), study_hash(study))
    # Of a split that nobody was graded on nothing is read.
    asked = study.experiment.dataset.prompts(study.split)[: study.exam] if graded else []
    slices = label_prompts(study.experiment.dataset, [question(prompt.messages) for prompt in asked])
    selective = {one.name: one.only for one in study.experiment.rewrites if one.only}
    plan = Plan(
        names, names[0], study.clean, study.temperatures, study.ladder, slices, selective, split=study.split,
        left_out=dict(study.left_out), searched=study.searched, always=study.always,
        controls={arm: study.controls_of(arm) for arm in study.arms if study.role(arm) == 'defence'},
    )  # fmt: skip
    return Findings(plan, graded, found, *verdicts(study, found))


def report(study: Study, path: str, commands: Sequence[str] = (), beside: str = '') -> list[Row]:
    """Writes the report of what there is, and returns its rows. beside: the workdir of a study on another testbed that
    has its report: the ranks of damages are compared.
    """
    findings, shown = find(study, path), _shown(study, path)
    reader = reader_of(study.experiment.dataset)
    rows = findings.rows()
    rows.append(agreement(damages(rows), *_reported(beside)))
    facts = page.Facts(
        testbed=study.testbed or study.experiment.dataset.name,
        readings=len(readings.readings(path)),
        versions={name: importlib.metadata.version(name) for name in ('adx', 'jax', 'flax', 'optax')}
        | {'study': study_hash(study)},
        commands=commands,
        licence=study.experiment.licence,
        disclosure=study.experiment.disclosure,
        samples=_samples(study.clean, shown, reader),
        transfer=[(one.arm, one.predictor, one.model, one.text) for one in transfer.read(path)],
        environments=[
            f'seed {seed}, {line}'
            for seed in study.seeds for line in environments.changes(Workdir(seed_path(path, seed)))
        ],
        unjudged=findings.unjudged,
        searched=study.searched,
        rewrites=list(_tallies(study, path)),
        proxies=_proxies(study.experiment),
    )
    audits = {arm: audit(list(traces.values()), reader, study.seeds[0]) for arm, traces in shown.items()}
    _write(path, rows, findings.outcomes, findings.verdicts, facts, audits)
    return rows


def _proxies(experiment: Experiment) -> dict[str, tuple[str, ...]]:
    """What was made by means of proxies -> their families."""
    made = [arm.name for arm in experiment.arms if arm.defence.wants_proxies]
    made += [one.name for one in experiment.selections if one.score]
    made += [one.name for one in experiment.rewrites if {'edit', 'harm'} & set(one.rewriter.needs)]
    return dict.fromkeys(made, tuple(epath.Path(source.source).name for source in experiment.proxies))


def _reported(path: str) -> tuple[dict[str, float], str]:
    """The damages in a finished report and what its testbed is called; nothing for ''."""
    if not path:
        return {}, ''
    place, fix = Workdir(path).private / 'report' / 'report.json', 'run --stages=report of that study first'
    if not files.exists(place):
        raise StorageError(f'{place} cannot be read: there is none; {fix}')
    content = read_content(place, 'report', dict, StorageError, fix)
    with malformed(f'{place} cannot be read', fix, StorageError):
        return damages(decode(Row, row) for row in content['rows']), str(content['testbed'])


def _tallies(study: Study, path: str) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Seed, rewrite and what became of its traces."""
    for seed in study.seeds:
        workdir = Workdir(seed_path(path, seed))
        yield from ((str(seed), name, rewrites_io.tally(workdir, name)) for name in rewrites_io.names(workdir))


def _shown(study: Study, path: str) -> dict[str, dict[str, Trace]]:
    """Of the first seed, a trace of each prompt for every arm; none while some are missing."""
    try:
        made = study_traces.read(study, path, study.seeds[0])
    except InputError:
        return {}
    return {arm: study_traces.one_each(traces) for arm, traces in made.items()}


def _samples(clean: str, by_arm: Mapping[str, Mapping[str, Trace]], reader: Reader) -> list[page.Sample]:
    """Traces of the first prompts that every arm has answered. clean: the arm that comes first."""
    common = [name for name in by_arm.get(clean, ()) if all(name in traces for traces in by_arm.values())]
    found = []
    for name in common[:SHOWN]:
        shown = {arm: traces[name] for arm, traces in by_arm.items()}
        first, gold = shown[clean], shown[clean].gold or ''
        said = {arm: (one.text, bool(gold) and reader.read(one.text, gold).strict) for arm, one in shown.items()}
        found.append(page.Sample(question(first.messages), gold, said))
    return found


def _write(
    path: str, rows: Sequence[Row], graded: Sequence[Outcome], judged: Verdicts, facts: page.Facts,
    audits: Mapping[str, Sequence[dict[str, Any]]],
) -> None:  # fmt: skip
    place = Workdir(path).private / 'report'
    with files.os_errors(StorageError, f'{place} was not written'):
        files.make_private_dir(place)
        files.write_private(place / 'report.html', page.html(rows, graded, judged, facts).encode())
        content = json.dumps(page.report(rows, graded, judged, facts), indent=1)
        files.write_private(place / 'report.json', content.encode())
        files.write_private(place / 'audit.json', json.dumps(audits, indent=1).encode())
