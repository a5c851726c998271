"""Runs an experiment, or a study of several seeds:

    python -m launch.run --config=configs/<name>.py --workdir=<directory or gs://bucket/path>

Killing it at any moment and running the same command again continues the run. Exit codes:
  0 complete          2 flags or config       3 input            4 workdir busy or foreign
  5 done, with rejected rows                 70 a bug           74 storage, after retries
 75 interrupted; the same command resumes

Under --distributed all processes get the same flags but --process_id. Only process 0 needs to see the workdir, but in
`distil`, and in `prepare` and `generate` where a rule wants derivatives, all do. What one of them refuses ends all with
its exit code. When one dies the others end with 75, or with 134 where JAX misses it first, within --silent_seconds;
one that never starts is waited for --start_seconds, one that lives and does not go on for --straggler_seconds, and all
end with 75 and its number. `launch.parent` starts them, says which one died and ends with 75 instead of 134.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any, NoReturn

from absl import app, flags

from adx.errors import COMPLETE, REJECTED_ROWS, AdxError, ConfigError
from launch import environment, program, stragglers
from launch.config import load_config
from launch.dry_run import dry_run
from launch.interrupts import Interrupts
from launch.joining import DISTRIBUTED, STRAGGLER_SECONDS, join

STAGES = ('freeze', 'prepare', 'generate', 'select', 'rewrite', 'distil', 'assess', 'report', 'export')
TOGETHER = ('prepare', 'generate', 'distil')  # what one program across hosts does
# Where schedulers say which share of the work is this process's: (index, count).
SCHEDULERS = (
    ('BATCH_TASK_INDEX', 'BATCH_TASK_COUNT'),  # GCP Batch
    ('JOB_COMPLETION_INDEX', 'JOB_COMPLETIONS'),  # Kubernetes indexed Job
    ('SLURM_PROCID', 'SLURM_NTASKS'),
)

CONFIG = flags.DEFINE_string('config', None, 'A Python file that defines experiment(), or study() over several seeds.')
WORKDIR = flags.DEFINE_string('workdir', None, 'Where the run is kept, local or gs://.', allow_override=True)
SET = flags.DEFINE_multi_string(
    'set', [], 'Override a field of the config: path.to.field=value. May be repeated.', allow_override=True
)
SWEEP = flags.DEFINE_multi_string(
    'sweep', [], 'One arm per value: arms.<arm>.path.to.field=value,value. May be repeated: a grid. '
    'Fields of an arm that have each value together are joined by +.'
)
STAGE_NAMES = flags.DEFINE_list('stages', ['generate'], f'Which stages to run, of {", ".join(STAGES)}.')
DRY_RUN = flags.DEFINE_bool('dry_run', False, 'Print the resolved experiment and its memory plan, run nothing.')
STATUS = flags.DEFINE_bool('status', False, 'Print how the run in --workdir is doing, from any machine.')
MAX_HOURS = flags.DEFINE_float('max_hours', 0.0, 'Stop resumably after so many hours; 0 never.', lower_bound=0.0)
LOG_TEXT = flags.DEFINE_bool('log_text', False, 'Show the text of every trace too; otherwise logs name ids only.')
SHARD = flags.DEFINE_integer('shard', None, 'Which share of the work; from the scheduler if not given.')
NUM_SHARDS = flags.DEFINE_integer('num_shards', None, 'How many processes share the work, each on its own.')
STUDENTS = flags.DEFINE_list('students', [], 'Stage distil: some families; other processes may take the others.')
ATTACKS = flags.DEFINE_list('attacks', [], 'Stage distil: some attacks; other processes may take the others.')
CHECKPOINT_EVERY = flags.DEFINE_integer(
    'checkpoint_every', 250, 'Stage distil: steps between checkpoints of students in training; 0 keeps none.', 0
)
BESIDE = flags.DEFINE_string('beside', '', 'Stage report: the workdir of a study on another testbed, to compare.')
SETTING = flags.DEFINE_string(
    'setting', None, 'Stage export: the arm, selection or rewrite that leaves; else the only arm.'
)
FORMAT = flags.DEFINE_string('format', 'chat', 'Stage export: chat, parquet or tfds.')


def place_of_process() -> tuple[int, int]:
    """(shard, num_shards) from the flags, else from the scheduler, else (0, 1)."""
    if (SHARD.value is None) != (NUM_SHARDS.value is None):
        raise ConfigError('--shard and --num_shards go together; give both or neither')
    shard, count = SHARD.value or 0, NUM_SHARDS.value or 1
    if SHARD.value is None:
        shard, count = (0, 1) if DISTRIBUTED.value else _scheduled()
    if not 0 <= shard < count:
        raise ConfigError(f'--shard={shard} is not allowed with --num_shards={count}; it must be 0 to {count - 1}')
    return shard, count


def _scheduled() -> tuple[int, int]:
    """(index, count) as the first scheduler that is there says, else (0, 1)."""
    for names in SCHEDULERS:
        if all(name in os.environ for name in names):
            try:
                return int(os.environ[names[0]]), int(os.environ[names[1]])
            except ValueError as error:
                given = ', '.join(f'{name}={os.environ[name]!r}' for name in names)
                raise ConfigError(f'{given}: both must be integers; give --shard and --num_shards') from error
    return 0, 1


def freeze(experiment: Any, path: str) -> int:
    """Commits to the experiment: from now on it, and no other, may read the split test in this workdir."""
    from adx import readings
    from adx.experiment import check, experiment_hash

    check(experiment)
    name = experiment_hash(experiment)
    readings.freeze(path, name)
    print(f'experiment {name} is frozen: it may read the split test, and each reading is counted')
    return COMPLETE


def prepare(experiment: Any, path: str, interrupts: Interrupts, wants_traces: bool = False) -> int:
    """wants_traces: a study reads the holdout traces, whether or not directions are to be taken on them."""
    from adx import preparation
    from adx.experiment import wants_directions
    from launch.progress import Progress

    place = place_in_run()
    with contextlib.closing(Progress(log_text=LOG_TEXT.value)) as progress:
        tell = functools.partial(progress.steps, 'directions')
        if wants_traces and not wants_directions(experiment):
            report, saved = preparation.decode_holdout(experiment, path, place, progress, interrupts.guard), ''
        else:
            report = preparation.prepare(experiment, path, place, progress, interrupts.guard, tell)
            saved = f'\ndirections of {len(experiment.proxies)} proxies are saved'
    if place.writes:
        print(f'holdout: {summary(report)}{saved}')
    return report.exit_code


def place_in_run() -> Any:
    import jax

    from adx.processes import Place

    writes = not DISTRIBUTED.value or jax.process_index() == 0
    return Place(*place_of_process(), writes, environment.MAY_CHANGE.value)


def generate(experiment: Any, path: str, interrupts: Interrupts) -> int:
    from adx import pipeline
    from launch.progress import Progress

    place = place_in_run()
    with contextlib.closing(Progress(log_text=LOG_TEXT.value)) as progress:
        report = pipeline.generate(experiment, path, place, progress, interrupts.guard)
    if place.writes:
        print(summary(report))
    return report.exit_code


def summary(report: Any) -> str:
    stops = ', '.join(f'{count} by {stop}' for stop, count in sorted(report.stops.items()))
    terms = ', '.join(f'{count} {licence}' for licence, count in sorted(report.terms.items()))
    return (
        f'{report.done} traces decoded ({stops or "none"}), {report.done_before} were there, '
        f'{report.rejected} rejected; {report.tokens} tokens in {report.seconds:.1f} s '
        f'({report.tokens_per_second:.0f} tokens/s), occupancy {report.occupancy:.0%}'
        f'{f"; by licence, all together: {terms}" if terms else ""}'
        + (f'; {report.fallbacks} tokens fell back to the teacher: a proxy gave nan or inf' if report.fallbacks else '')
    )


def select(experiment: Any, path: str) -> int:
    from adx import selecting
    from launch.progress import Progress

    with contextlib.closing(Progress(log_text=LOG_TEXT.value)) as progress:
        chosen = selecting.select(experiment, path, functools.partial(progress.steps, 'scores'))
    for name, (prompts, others, left_out) in chosen.items():
        print(
            f'selection {name}: {prompts} prompts, {others} of them with another choice than the first sample'
            + (f'; {left_out} are left out, of which a sample was rejected' if left_out else '')
        )
    return COMPLETE


def rewrite(experiment: Any, path: str, interrupts: Interrupts) -> int:
    from adx import rewriting
    from launch.progress import Progress

    with contextlib.closing(Progress(log_text=LOG_TEXT.value)) as progress:
        tell = functools.partial(progress.steps, 'rewrites')
        made = rewriting.rewrite(experiment, path, tell, interrupts.guard, place_in_run())
    for name, counts in made.items():
        refused = ', '.join(f'{count} for {reason}' for reason, count in counts['refused'].items())
        done = f'{counts["rewritten"]} of {counts["traces"]} traces'
        words = '' if counts['changed'] is None else f', {counts["changed"]:.0%} of their words changed'
        print(f'rewrite {name}: {done}{words}, refused drafts: {refused or "none"}')
    return COMPLETE


def export(experiment: Any) -> int:
    from adx.export import export as write_release

    names = [item.name for item in (*experiment.arms, *experiment.selections, *experiment.rewrites)]
    if SETTING.value is None and len(names) > 1:
        raise ConfigError(f'--setting is needed to export one of the arms, selections and rewrites {names}')
    path = write_release(
        WORKDIR.value, FORMAT.value, SETTING.value or names[0], experiment.licence, experiment.disclosure
    )
    print(f'release written to {path}')
    return COMPLETE


def resolve() -> Any:
    """The experiment that the flags name. Raises ConfigError for flags that name none or do not go together."""
    from adx.experiment import override, sweep

    if not CONFIG.value:
        raise ConfigError('--config is needed; see configs/')
    experiment = override(load_config(CONFIG.value), SET.value)
    if SWEEP.value:
        experiment = sweep(experiment, SWEEP.value)
    unknown = [name for name in STAGE_NAMES.value if name not in STAGES]
    if unknown or not STAGE_NAMES.value:
        raise ConfigError(f'--stages has {unknown or "no stage"}; the stages are {STAGES}')
    alone = [name for name in STAGE_NAMES.value if name not in TOGETHER]
    if DISTRIBUTED.value and alone:
        raise ConfigError(f'--stages={alone[0]} is not done by one program across hosts; run it without --distributed')
    if not WORKDIR.value and not DRY_RUN.value:
        raise ConfigError('--workdir is needed; give a directory or gs://bucket/path')
    return experiment


def run(interrupts: Interrupts) -> int:
    if STATUS.value:
        from adx.watch import status
        from launch import study

        if not WORKDIR.value:
            raise ConfigError('--status needs --workdir')
        print(json.dumps(study.status(WORKDIR.value) or status(WORKDIR.value), indent=2))
        return COMPLETE
    from adx import processes

    if DISTRIBUTED.value:
        join()
        interrupts.listen()
        stragglers.watch(STRAGGLER_SECONDS.value, interrupts.end)
    experiment = processes.together(resolve)
    if DRY_RUN.value:
        processes.together(lambda: dry_run(experiment, WORKDIR.value))
        return COMPLETE
    from adx.study import Study

    if place_of_process()[0]:
        environment.only_read_programs()
    of_study = isinstance(experiment, Study)
    stages = study_stages(experiment, interrupts) if of_study else experiment_stages(experiment, interrupts)
    other = [name for name in STAGE_NAMES.value if name not in stages]
    if other:
        kind = 'a study' if of_study else 'an experiment'
        raise ConfigError(f'--stages={other[0]} is none of {kind}; {CONFIG.value} defines one with {tuple(stages)}')
    return max(stages[name]() for name in STAGES if name in STAGE_NAMES.value)


def distil(study: Any, path: str, interrupts: Interrupts) -> int:
    from adx.keeping import Keeping
    from launch import study as stages

    place = place_in_run()
    keeping = Keeping(interrupts.guard, CHECKPOINT_EVERY.value, place.writes)
    return stages.distil(study, path, keeping, (STUDENTS.value, ATTACKS.value, place.shard, place.num_shards))


def experiment_stages(experiment: Any, interrupts: Interrupts) -> dict[str, Callable[[], int]]:
    path = str(WORKDIR.value)
    return {
        'freeze': lambda: freeze(experiment, path),
        'prepare': lambda: prepare(experiment, path, interrupts),
        'generate': lambda: generate(experiment, path, interrupts),
        'select': lambda: select(experiment, path),
        'rewrite': lambda: rewrite(experiment, path, interrupts),
        'export': lambda: export(experiment),
    }


def study_stages(study: Any, interrupts: Interrupts) -> dict[str, Callable[[], int]]:
    """Traces seed by seed, each in a workdir of its own, then what is made of all of them."""
    from adx.study import check
    from launch import study as stages

    check(study)
    path, wants = str(WORKDIR.value), study.wants_holdout
    return {
        'freeze': lambda: stages.freeze(study, path),
        'prepare': lambda: stages.each_seed(study, path, lambda one, where: prepare(one, where, interrupts, wants)),
        'generate': lambda: stages.each_seed(study, path, lambda one, where: generate(one, where, interrupts)),
        'select': lambda: stages.each_seed(study, path, select),
        'rewrite': lambda: stages.each_seed(study, path, lambda one, where: rewrite(one, where, interrupts)),
        'distil': lambda: distil(study, path, interrupts),
        'assess': lambda: stages.assess(study, path, place_in_run()),
        'report': lambda: stages.report(study, path, ' '.join(sys.argv), BESIDE.value),
    }


def main(_: list[str]) -> None:
    interrupts = Interrupts()
    interrupts.install(MAX_HOURS.value)
    try:
        code = run(interrupts)
    except AdxError as error:
        print(f'error: {error}', file=sys.stderr)
        code = error.exit_code
    except Exception as error:
        code = program.unforeseen(error)
    if code in (COMPLETE, REJECTED_ROWS):
        sys.exit(code)
    leave(code)


def leave(code: int) -> NoReturn:
    """Ends a run that failed at once: an orderly exit crashes while the device still works.

    Under --distributed it would also wait for processes that wait for this one; its end ends them.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    if DISTRIBUTED.value:
        time.sleep(1)  # for the others to have read what this process told them
    os._exit(code)


if __name__ == '__main__':
    app.run(main, flags_parser=program.parse)
