r"""Writes a workdir's release: one setting's traces, nothing of the defence's own map.

    python -m tools.export_traces --workdir=/data/run --setting=defended --format=chat \
        --licence=cc-by-nc-4.0 --disclosure=public

Exit codes: 0 done, 2 flags, 3 input, 4 workdir, 74 storage.
"""

from __future__ import annotations

from absl import flags

from adx import export
from launch import program

WORKDIR = flags.DEFINE_string(
    'workdir', None, 'The workdir of a run, local or gs://.', required=True, allow_override=True
)
SETTING = flags.DEFINE_string(
    'setting', None, 'Which arm, selection or rewrite of the run leaves.', required=True, allow_override=True
)
FORMAT = flags.DEFINE_enum('format', 'chat', list(export.FORMATS), 'The format of the release.', allow_override=True)
LICENCE = flags.DEFINE_string('licence', None, 'The licence of the traces, one line.', required=True)
DISCLOSURE = flags.DEFINE_string('disclosure', '', f'For defended traces: {export.DISCLOSURES}.')


def main() -> None:
    print(export.export(WORKDIR.value, FORMAT.value, SETTING.value, LICENCE.value, DISCLOSURE.value))


if __name__ == '__main__':
    program.start(main)
