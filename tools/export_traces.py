"""Writes the release of a workdir: the traces of one setting, and nothing of the defence's own map.

    python -m tools.export_traces --workdir=/data/run --setting=defended --format=chat \
        --licence=cc-by-nc-4.0 --disclosure=public
"""

from __future__ import annotations

import sys

from absl import app, flags

from adx import export
from adx.errors import COMPLETE, AdxError

WORKDIR = flags.DEFINE_string('workdir', None, 'The workdir of a run, local or gs://.', required=True)
SETTING = flags.DEFINE_string('setting', None, 'Which setting of the run leaves.', required=True)
FORMAT = flags.DEFINE_enum('format', 'chat', list(export.FORMATS), 'The format of the release.')
LICENCE = flags.DEFINE_string('licence', None, 'The licence of the traces, one line.', required=True)
DISCLOSURE = flags.DEFINE_string('disclosure', '', f'For defended traces: {export.DISCLOSURES}.')


def main(argv: list[str]) -> int:
    del argv
    try:
        path = export.export(WORKDIR.value, FORMAT.value, SETTING.value, LICENCE.value, DISCLOSURE.value)
    except AdxError as error:
        print(f'error: {error}', file=sys.stderr)
        return error.exit_code
    print(path)
    return COMPLETE


if __name__ == '__main__':
    app.run(main)
