"""Training with real Orbax checkpoints, killed at every call of Python's that changes the disk, and, on gs://, at every
request that changes the store, TensorStore's among them. A quick sibling with a stand-in for Orbax is in
kill_points_test.py.
"""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]


@pytest.mark.slow
@pytest.mark.parametrize(('where', 'least'), [('local', 40), ('gs', 20)])
def test_training_goes_on_from_a_whole_checkpoint(tmp_path, where, least):
    command = [sys.executable, '-m', 'tests.orbax_kills', where, str(tmp_path)]
    variables = os.environ | {'PYTHONPATH': f'{ROOT}:{ROOT / "tests"}', 'JAX_PLATFORMS': 'cpu'}
    run = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
    assert int(run.stdout.split()[-1]) > least
