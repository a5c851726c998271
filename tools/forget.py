"""Removes one request from a workdir, or the private traces of runs that are old.

    python -m tools.forget --workdir=/data/run --request_id=gsm8k/train/14e7cb1e6e4a
    python -m tools.forget --workdir=/data/run --retention_days=90

A request goes with all its samples and settings: of a longer id the parts after dataset/split/row are left out. Stopped
at any moment the same command goes on. Run the second from a timer to keep to a term; it says what it removed and what
stays. Exit codes: 0 done, 2 flags, 3 input, 4 workdir busy or none, 74 storage.
"""

from __future__ import annotations

from absl import flags

from adx import forgetting, retention
from adx.errors import ConfigError
from launch import program

_WORKDIR = flags.DEFINE_string('workdir', None, 'The workdir of a run or a study.', allow_override=True)
_REQUEST_ID = flags.DEFINE_string('request_id', '', 'Removes this request: dataset/split/row.')
_RETENTION_DAYS = flags.DEFINE_float('retention_days', None, 'Removes private traces of runs older than so many days.')


def main() -> None:
    if not _WORKDIR.value or bool(_REQUEST_ID.value) == (_RETENTION_DAYS.value is not None):
        raise ConfigError('give --workdir and either --request_id or --retention_days')
    if _RETENTION_DAYS.value is not None:
        print('\n'.join(retention.expire(_WORKDIR.value, _RETENTION_DAYS.value)))
        return
    found = forgetting.forget(_WORKDIR.value, _REQUEST_ID.value)
    print('\n'.join(['removed:', *(f'  {line}' for line in found.removed or ['nothing that was still there'])]))
    print('\n'.join(['cannot be undone here:', *(f'  {line}' for line in found.left)]))


if __name__ == '__main__':
    program.start(main)
