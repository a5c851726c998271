"""Measures how well proxies' directions predict what traces do to other models.

    python -m launch.run --config=configs/testbed_steps.py --workdir=DIR --stages=prepare,generate
    python -m tools.bench.transfer --config=configs/testbed_steps.py --workdir=DIR

A figure is the rank correlation of adx/transfer.py for one proxy and one model; its samples are the study's seeds, each
with traces of its own, those of the clean arm. Appends to results/transfer.json.
"""

from __future__ import annotations

import pathlib

from absl import flags

from adx import transfer
from adx.study import Study
from launch import program
from launch.config import load_config
from tools.bench import figures

TABLE = 'transfer'
GROUPS, SIZE = 48, 8

_CONFIG = flags.DEFINE_string('config', 'configs/testbed_steps.py', 'A study.', allow_override=True)
_WORKDIR = flags.DEFINE_string('workdir', '', 'Its workdir, with traces.', allow_override=True)


def samples(study: Study, path: str, groups: int, size: int) -> dict[str, list[float]]:
    """Figure -> the rank correlation of each seed."""
    found: dict[str, list[float]] = {}
    for seed in study.seeds:
        for cell in transfer.measure(study, path, seed, study.clean, groups, size):
            names = (pathlib.Path(name).name for name in (cell.predictor, cell.model))
            found.setdefault('_to_'.join(names).replace('-', '_'), []).append(cell.rho.value)
    return found


def main() -> None:
    study, unit = load_config(_CONFIG.value), f'rank correlation over {GROUPS} groups of {SIZE}'
    command = f'python -m tools.bench.transfer --config={_CONFIG.value} --workdir=DIR'
    for figure, seeds in samples(study, _WORKDIR.value, GROUPS, SIZE).items():
        row = figures.append(TABLE, figure, seeds, unit=unit, goal='', command=command)
        print(f'{figure}: {row["value"]:.2f} ({row["low"]:.2f} to {row["high"]:.2f})')


if __name__ == '__main__':
    program.start(main)
