"""What defences cost a reader of a run: right answers lost, as the dataset grades them.

    python -m launch.run --config=configs/smollm2_mbpp.py --set=dataset.path=mbpp.jsonl --workdir=DIR \
        --stages=prepare,generate
    python -m tools.bench.utility --config=configs/smollm2_mbpp.py --workdir=DIR --name=mbpp

For every arm its share of right answers, over all its traces; for all but the first, the undefended one, also the
points lost to it with their one-sided 95 % upper bound, paired by prompt. Appends to results/utility.json.
"""

from __future__ import annotations

from collections.abc import Sequence

from absl import app, flags

from adx.answers import reader_of
from adx.errors import InputError
from adx.experiment import Experiment
from adx.statistics import paired_upper
from adx.storage import Workdir
from adx.types import RequestId, Trace
from launch.config import load_config
from tools.bench import figures

_CONFIG = flags.DEFINE_string('config', '', 'The experiment.', allow_override=True)
_WORKDIR = flags.DEFINE_string('workdir', '', 'Where its traces are.', allow_override=True)
_NAME = flags.DEFINE_string('name', '', 'Of the dataset, in the names of figures.', allow_override=True)
TABLE = 'utility'


def by_arm(experiment: Experiment, workdir: Workdir) -> dict[str, dict[str, Trace]]:
    """Arm -> noise name -> trace. Raises InputError unless all arms have the same, at least one."""
    found: dict[str, dict[str, Trace]] = {arm.name: {} for arm in experiment.arms}
    for trace in workdir.traces():
        id_ = RequestId.parse(trace.request_id)
        found[id_.setting][id_.noise_name] = trace
    if len({frozenset(of) for of in found.values()}) > 1 or not all(found.values()):
        there = {arm: len(of) for arm, of in found.items()}
        raise InputError(f'{workdir.path} has traces {there}; finish --stages=generate first')
    return found


def publish(experiment: Experiment, workdir: Workdir, name: str, command: str) -> None:
    reader, arms = reader_of(experiment.dataset), by_arm(experiment, workdir)
    first, *_ = arms.values()
    prompts = [RequestId.parse(trace.request_id).prompt_id for trace in first.values()]

    def put(figure: str, samples: Sequence[float], unit: str) -> None:
        row = figures.append(TABLE, f'{figure}_{name}', samples, unit=unit, goal='', command=command)
        print(f'{row["figure"]}: {row["value"]:.3g} {unit}')

    right = {
        arm: [float(reader.read(of[one].text, of[one].gold or '').strict) for one in first] for arm, of in arms.items()
    }
    clean = next(iter(right.values()))
    for arm, scores in right.items():
        put(f'right_{arm}', [sum(scores) / len(scores)], f'of {len(scores)} answers')
        if scores is clean:
            continue
        put(f'points_lost_{arm}', [100 * (sum(clean) - sum(scores)) / len(scores)], 'points')
        put(f'points_lost_upper_{arm}', [100 * paired_upper(clean, scores, clusters=prompts)], 'points')


def main(argv: Sequence[str]) -> None:
    del argv
    command = f'python -m tools.bench.utility --config={_CONFIG.value} --workdir=DIR --name={_NAME.value}'
    publish(load_config(_CONFIG.value), Workdir(_WORKDIR.value), _NAME.value, command)


if __name__ == '__main__':
    app.run(main)
