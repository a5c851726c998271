"""Measures how long the first token takes when nothing is compiled, and when all is.

    python -m tools.bench.cold_start                    # appends to tools/bench/results/cold_start.json
    python -m tools.bench.cold_start --tries=1 --config=configs/demo.py

Each start is a run of its own of one prompt and one token, from the command to its end: an interpreter, imports,
weights, programs, one token, the journal. Cold has an empty compile cache, warm the one that cold filled. The seconds
to the first token end where the run says its trace, which has one token. A host's absolute times say little of
another's, so ratios of the whole are published too, of wall time and of CPU time, which other work on the machine moves
less.
"""

from __future__ import annotations

import collections
import json
import math
import os
import pathlib
import resource
import subprocess
import sys
import tempfile
import time
from typing import IO, NamedTuple

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


class Taken(NamedTuple):
    """Seconds of a process; first: to its first token, nan where it makes none."""

    wall: float
    cpu: float
    first: float = math.nan


def _cpu_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def seconds(command: list[str]) -> Taken:
    """What a process takes. Raises InputError with its last line where it fails."""
    begin, before = time.perf_counter(), _cpu_of_children()
    cached = ('JAX_COMPILATION_CACHE_DIR', 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS')
    env = {name: value for name, value in os.environ.items() if name not in cached}
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=env) as process:
        assert process.stderr is not None
        first, last = _follow(process.stderr, begin)
    taken = Taken(time.perf_counter() - begin, _cpu_of_children() - before, first)
    if process.returncode:
        raise InputError(f'{" ".join(command)} ended with {process.returncode}: {last}')
    return taken


def _follow(said: IO[str], begin: float) -> tuple[float, str]:
    """(seconds from `begin` to the line of the first trace, the last line); nan without one."""
    first, kept = math.nan, collections.deque(['no output'], maxlen=1)
    for line in said:
        if math.isnan(first) and _is_trace(line):
            first = time.perf_counter() - begin
        kept.extend([line.strip()] if line.strip() else [])
    return first, kept[-1]


def _is_trace(line: str) -> bool:
    try:
        return json.loads(line)['event'] == 'trace'
    except (ValueError, TypeError, KeyError):
        return False


def start(config: str, place: pathlib.Path, name: str) -> Taken:
    """Of a run in a workdir of its own, with the compile cache in `place`."""
    given = [f'--set={override}' for override in OVERRIDES]
    where = [f'--config={config}', f'--workdir={place / name}', f'--compile_cache={place / "programs"}']
    return seconds([sys.executable, '-m', 'launch.run', *where, *given, '--log_text'])  # which shows it at once


def measure(config: str, tries: int) -> list[tuple[Taken, Taken]]:
    """Pairs, cold and warm."""
    pairs = []
    for _ in range(tries):
        with tempfile.TemporaryDirectory(prefix='adx_cold_start_') as folder:
            place = pathlib.Path(folder)
            pairs.append((start(config, place, 'cold'), start(config, place, 'warm')))
        for name, taken in zip(('cold', 'warm'), pairs[-1], strict=True):
            print(f'{name} {taken.wall:.2f} s, {taken.cpu:.2f} s of CPU time, first token after {taken.first:.2f} s')
    return pairs


def main() -> None:
    imports = [seconds([sys.executable, '-c', 'import adx']).wall for _ in range(max(5, _TRIES.value))]
    print(f'import adx: {min(imports):.3f} to {max(imports):.3f} s')
    pairs = measure(_CONFIG.value, _TRIES.value)
    if not _WRITE.value:
        return
    figures.append(TABLE, 'import_seconds', imports, unit='s', goal='< 1.5', command=COMMAND)
    for name, starts in zip(('cold', 'warm'), zip(*pairs, strict=True), strict=True):
        firsts = [taken.first for taken in starts]
        figures.append(TABLE, f'first_token_seconds_{name}', firsts, unit='s', goal='', command=COMMAND)
    for kind in ('wall', 'cpu'):
        ratios = [getattr(warm, kind) / getattr(cold, kind) for cold, warm in pairs]
        figures.append(TABLE, f'first_token_warm_over_cold_{kind}', ratios, unit='of cold', goal='< 1', command=COMMAND)


if __name__ == '__main__':
    program.start(main)
