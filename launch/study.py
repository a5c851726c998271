"""The stages of launch.run for a config that defines study()."""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Callable, Sequence
from typing import Any

from adx.errors import COMPLETE
from launch.progress import Progress


def dry_run(study: Any) -> Any:
    """Prints the study and how many students it trains; returns the experiment of its first seed."""
    from adx import experiment as experiments
    from adx.study import REGISTRY, check, study_hash

    check(study)
    fields = experiments.to_json(study, REGISTRY)
    print(json.dumps({name: value for name, value in fields.items() if name != 'experiment'}, indent=2))
    print(f'\nstudy hash {study_hash(study)}\n{count_line(study)}\n')
    return study.of_seed(study.seeds[0])


def count_line(study: Any) -> str:
    """How many students at most: an attack without resources of its own trains none on them."""
    arms, grid = len(study.arms) + 1, len(study.settings)
    groups = len(study.students) * len(study.attacks)
    each = len(study.budgets) if study.each_budget else 1
    first, others = groups * arms * grid, groups * arms * each * (len(study.seeds) - 1)
    return (
        f'students: up to {first} on the first seed ({len(study.students)} families x {len(study.attacks)} attacks x '
        f'{arms} sources x {grid} settings) and {others} on {len(study.seeds) - 1} others'
    )


def each_seed(study: Any, path: str, stage: Callable[[Any, str], int]) -> int:
    """Runs a stage of the experiment for every seed; the worst exit code."""
    from adx.study_traces import seed_path

    return max(stage(study.of_seed(seed), seed_path(path, seed)) for seed in study.seeds)


def status(path: str) -> dict[str, Any] | None:
    """How a study's workdir is doing: its seeds' runs and how many students are graded; None where it is no study's."""
    from adx import outcomes_io, storage, watch

    seeds = storage.Workdir(path).private / 'seeds'
    if not seeds.exists():
        return None
    runs = {place.name: watch.status(place) for place in sorted(seeds.iterdir()) if place.is_dir()}
    return {'seeds': runs, 'outcomes': len(outcomes_io.read(path))}


def freeze(study: Any, path: str) -> int:
    """Commits to the study: from now on it, and no other, may grade on the split test."""
    from adx import readings
    from adx.study import commitment

    readings.freeze(path, commitment(study))
    print(
        f'study {commitment(study)} is frozen with its students and attacks: it may read the split test, and each '
        'reading is counted'
    )
    return COMPLETE


def distil(study: Any, path: str, keeping: Any, share: Sequence[Any] = ()) -> int:
    """share: of this process, see study.Share."""
    from adx import distilling, fitting
    from adx.study import Share

    say = print if keeping.writes else lambda line: None

    def announce(ahead: distilling.Estimate) -> None:
        minutes = ahead.seconds / 60
        say(f'ahead: up to {ahead.students} students, {ahead.steps} steps, {minutes:.0f} minutes of training')

    say(count_line(study))
    with fitting.training_explained(study), contextlib.closing(Progress()) as progress:
        tell = functools.partial(progress.steps, 'steps') if keeping.writes else lambda name, done, total: None
        outcomes = distilling.distil(study, path, tell, keeping, announce, Share(*share))
    graded = [one for one in outcomes if one.split == study.split]
    say(f'{len(graded)} students graded on {study.split}, {len(outcomes) - len(graded)} on attack_val')
    return COMPLETE


def assess(study: Any, path: str, share: Any) -> int:
    from adx import assessing

    with contextlib.closing(Progress()) as progress:
        found = assessing.assess(study, path, functools.partial(progress.steps, 'arms'), share)
    for one in found:
        right = sum(one.correct) / len(one.correct)
        print(f'seed {one.seed}, {one.arm}: {right:.1%} right, {one.tokens:.1f} tokens a trace')
    return COMPLETE


def report(study: Any, path: str, command: str, beside: str = '') -> int:
    from adx import assessing

    rows = assessing.report(study, path, [command], beside)
    print(f'{len(rows)} figures in {path}/private/report/report.html and report.json')
    return COMPLETE
