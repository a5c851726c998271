"""Measures how long the first token takes when nothing is compiled, and when all is: cold and warm starts.

    python -m tools.bench.cold_start                    # appends to tools/bench/results/cold_start.json
    python -m tools.bench.cold_start --tries=1 --config=configs/demo.py

Each start is a run of its own of one prompt and one token, from the command to its end: an interpreter, imports,
weights, programs, one token, the journal. Cold has an empty compile cache, warm the one that cold filled. A host's
absolute times say little of another's, so the ratio is published; seconds are printed.
"""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
import tempfile
import time

from absl import flags

from adx.errors import InputError
from launch import program
from tools.bench import figures

TABLE = 'cold_start'
COMMAND = 'python -m tools.bench.cold_start'
OVERRIDES = ('limit=1', 'samples=1', 'max_new_tokens=1')

_CONFIG = flags.DEFINE_string('config', 'configs/smollm2_poe.py', 'What is run.', allow_override=True)
_TRIES = flags.DEFINE_integer('tries', 3, 'Pairs of starts.', lower_bound=1, allow_override=True)
_WRITE = flags.DEFINE_bool('append', True, 'Append to the published figures.', allow_override=True)


def seconds(command: list[str]) -> float:
    """Wall time of a process. Raises InputError with its last line where it fails."""
    begin = time.perf_counter()
    cached = ('JAX_COMPILATION_CACHE_DIR', 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS')
    without = {name: value for name, value in os.environ.items() if name not in cached}
    done = subprocess.run(command, capture_output=True, text=True, env=without)
    taken = time.perf_counter() - begin
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ['no output'])[-1]
        raise InputError(f'{" ".join(command)} ended with {done.returncode}: {last}')
    return taken


def start(config: str, place: pathlib.Path, name: str) -> float:
    """Seconds of a run in a workdir of its own, with the compile cache in `place`."""
    given = [f'--set={override}' for override in OVERRIDES]
    where = [f'--config={config}', f'--workdir={place / name}', f'--compile_cache={place / "programs"}']
    return seconds([sys.executable, '-m', 'launch.run', *where, *given])


def measure(config: str, tries: int) -> list[tuple[float, float]]:
    """Pairs of seconds, cold and warm."""
    pairs = []
    for _ in range(tries):
        with tempfile.TemporaryDirectory(prefix='adx_cold_start_') as folder:
            place = pathlib.Path(folder)
            pairs.append((start(config, place, 'cold'), start(config, place, 'warm')))
        print(f'cold {pairs[-1][0]:.2f} s, warm {pairs[-1][1]:.2f} s')
    return pairs


def main() -> None:
    imports = [seconds([sys.executable, '-c', 'import adx']) for _ in range(max(5, _TRIES.value))]
    print(f'import adx: {min(imports):.3f} to {max(imports):.3f} s')
    pairs = measure(_CONFIG.value, _TRIES.value)
    if not _WRITE.value:
        return
    figures.append(TABLE, 'import_seconds', imports, unit='s', goal='< 1.5', command=COMMAND)
    row = figures.append(
        TABLE, 'first_token_warm_over_cold', [warm / cold for cold, warm in pairs], unit='of the time cold',
        goal='', command=COMMAND,
    )  # fmt: skip
    print(f'warm over cold: {row["value"]:.2f} ({row["low"]:.2f} to {row["high"]:.2f})')


if __name__ == '__main__':
    program.start(main)
