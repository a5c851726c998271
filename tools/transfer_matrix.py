"""Prints how well a proxy's direction predicts what traces do to every model of a study.

    python -m tools.transfer_matrix --config=configs/testbed_screen.py --workdir=/data/screen --arm=plain

The report of the study shows the matrix from then on. Exit codes: 0 done, 2 flags, 3 input.
"""

from __future__ import annotations

import contextlib
import functools

from absl import flags

from adx.errors import ConfigError
from adx.study import Study, check
from adx.transfer import transfer
from launch import program
from launch.config import load_config
from launch.progress import Progress

_CONFIG = flags.DEFINE_string('config', None, 'A Python file that defines study().', required=True, allow_override=True)
_WORKDIR = flags.DEFINE_string('workdir', None, 'The study, with traces.', required=True, allow_override=True)
_ARM = flags.DEFINE_string('arm', 'plain', 'Whose traces the models take a step on.')
_GROUPS = flags.DEFINE_integer('groups', 48, 'Groups of traces, each a step of its own.')
_SIZE = flags.DEFINE_integer('size', 8, 'Traces of a group.', lower_bound=1)


def main() -> None:
    study = load_config(_CONFIG.value)
    if not isinstance(study, Study):
        raise ConfigError(f'{_CONFIG.value} defines no study(); a transfer matrix is of a study')
    check(study)
    with contextlib.closing(Progress()) as progress:
        tell = functools.partial(progress.steps, 'steps')
        cells = transfer(study, _WORKDIR.value, _ARM.value, _GROUPS.value, _SIZE.value, tell)
    for cell in cells:
        print(f'{cell.predictor} -> {cell.model}: rho {cell.text}')


if __name__ == '__main__':
    program.start(main)
