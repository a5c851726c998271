"""Kills -9 real runs at random moments and compares what is there with undisturbed ones.

Moments are drawn uniformly over the work, and the same command is started again until it is done. What is there is
compared with an uninterrupted run and with what a witness saw come from the device.

    python -m tools.soak --stage=generate --kills=100 --record   # appends to tools/bench/results/faults.json

Every start is a fork of one process that has imported everything and started no backend; compiled programs are
shared in a cache. Only so are a hundred kills affordable. A run takes seconds, so traces are flushed every 0.1 s here
and not every two seconds, and rewrites are saved eight at a time: shares of a run are of runs that save so often.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable

from absl import flags

from adx.errors import BUG, ConfigError
from adx.statistics import binomial_interval
from launch import program
from tools.bench import figures
from tools.soaking import stages, witness
from tools.soaking.stages import STAGES, Stage

TABLE = 'faults'
UNITS = {
    'kills': 'in all', 'lost': 'results', 'duplicated': 'results', 'byte_identical': '1 is yes',
    'unsaved_share': "of a run's results, a kill, with a flush every 0.1 s",
    'recomputed_share': "of a run's results, a kill, beyond the batch in flight",
    'failure_rate_upper': 'a kill, one-sided 95 % bound',
}  # fmt: skip
TOTALS = {
    'kills': ('over all stages', '>= 100 a stage'), 'lost': ('over all stages', '0'),
    'duplicated': ('over all stages', '0'), 'byte_identical': ('1 is yes', '1'),
}  # fmt: skip
LIMIT = 600.0  # seconds, after which a run hangs
POLL, PAUSE = 0.002, 0.05

_STAGE = flags.DEFINE_enum('stage', 'generate', list(STAGES), 'What is killed.')
_KILLS = flags.DEFINE_integer('kills', 100, 'How often.', lower_bound=1)
_SEED = flags.DEFINE_integer('seed', 0, 'Of the moments.', allow_override=True)
_MINUTES = flags.DEFINE_float('minutes', 0.0, 'Begin no new run after so many; 0 goes on to the last kill.')
_RECORD = flags.DEFINE_bool('record', False, 'Append the figures.', allow_override=True)


@dataclasses.dataclass
class Trial:
    """One workdir from its first start to its end. lost: what was saved, or seen, and is not there as it was;
    duplicated: ids that are there more than once. unsaved: of each kill, the share of a run's results that the device
    had finished and that were computed again; beyond: as much of it as is more than a batch.
    """

    lost: int = 0
    duplicated: int = 0
    identical: bool = False
    unsaved: list[float] = dataclasses.field(default_factory=list)
    beyond: list[float] = dataclasses.field(default_factory=list)

    @property
    def kills(self) -> int:
        return len(self.unsaved)

    @property
    def failed(self) -> bool:
        return bool(self.lost or self.duplicated or not self.identical)


def start(run: Callable[[], int], log: pathlib.Path) -> int:
    """Forks a process that runs `run`, writes to `log` and exits with its code; the process's id."""
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    code = BUG
    try:
        with log.open('a') as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        code = run()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else BUG
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def wait(pid: int, seconds: float, is_due: Callable[[], bool] = lambda: False) -> int | None:
    """The exit code of a process, negative for a signal; None where it still runs after so long, or is_due."""
    until = time.monotonic() + seconds
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() >= until or is_due():
            return None
        time.sleep(POLL)


def worked(pid: int) -> float:
    """Seconds of processor time that a process has had: unlike a clock's they mean the same on a busy machine."""
    fields = pathlib.Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf('SC_CLK_TCK')


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


class Soak:
    """One stage under kills. root: where its workdirs are; `again` a run that was not interrupted."""

    def __init__(self, stage: Stage, root: pathlib.Path, rng: random.Random):
        self.stage, self.root, self.rng = stage, root, rng
        self.base, self.count = root / 'base', 0
        for name, before in stage.before.items():
            self._whole(before, self.base, name)
        for name in ('first', 'second'):  # the first compiles
            place = self._fresh(name)
            start = os.times()
            self._whole(stage.run, place, name)
            end = os.times()
            self.seconds = end.children_user + end.children_system - start.children_user - start.children_system
        self.expected, told = stage.final(place), witness.what_was_told(place.with_suffix('.seen'))
        self.total = sum(told.sizes.values())
        self.batch = stage.batch * self.total / len(told.sizes)

    def _fresh(self, name: str) -> pathlib.Path:
        place = self.root / name
        if self.base.exists():
            shutil.copytree(self.base, place)
        return place

    def _start(self, run: stages.Run, place: pathlib.Path) -> int:
        def watched() -> int:
            witness.flush_often(stages.FLUSH_SECONDS, stages.BATCH)
            seer = witness.Witness(place.with_suffix('.seen'))
            seer.watch(self.stage is STAGES['generate'])
            return run(place, seer)

        return start(watched, place.with_suffix('.log'))

    def _whole(self, run: stages.Run, place: pathlib.Path, name: str) -> None:
        pid = self._start(run, place)
        code = wait(pid, LIMIT)
        if code is None:
            kill(pid)
        if code != 0:
            raise ConfigError(f'{name} ended with {code}; see {place.with_suffix(".log")}')

    def trial(self) -> Trial:
        """Starts the command again and again, each time killed at a moment of its own, until it ends first."""
        self.count += 1
        place, one, known = self._fresh(f'run{self.count}'), Trial(), 0
        while True:
            pid = self._start(self.stage.run, place)
            code = self._wait_for_a_moment(pid)
            if code is not None:
                break
            kill(pid)
            told, there = witness.what_was_told(place.with_suffix('.seen'), known), set(self.stage.final(place))
            known += told.lines
            one.lost += len(told.saved - there)
            unsaved = sum(size for id_, size in told.sizes.items() if id_ not in there)
            one.unsaved.append(unsaved / self.total)
            one.beyond.append(max(0.0, unsaved - self.batch) / self.total)
        if code:
            raise ConfigError(f'a restarted run ended with {code}; see {place.with_suffix(".log")}')
        self._judge(one, place)
        return one

    def _wait_for_a_moment(self, pid: int) -> int | None:
        """The exit code of a process that ended before its moment came; it may come inside a wait for the disk too."""
        moment, pause = self.rng.uniform(0, self.seconds), self.rng.uniform(0, PAUSE)
        code = wait(pid, LIMIT, lambda: worked(pid) >= moment)
        if code is None and worked(pid) < moment:
            kill(pid)
            raise ConfigError(f'a restarted run hangs: {LIMIT:g} s went by; see its log in {self.root}')
        return wait(pid, pause) if code is None else code

    def _judge(self, one: Trial, place: pathlib.Path) -> None:
        told, found = witness.what_was_told(place.with_suffix('.seen')), self.stage.final(place)
        one.lost += sum(set(hashes) != {found.get(id_)} for id_, hashes in told.seen.items())
        ids = self.stage.stored(place)
        one.duplicated = len(ids) - len(set(ids))
        one.identical = found == self.expected
        if not one.failed:
            for path in (place.with_suffix('.seen'), place.with_suffix('.log')):
                path.unlink(missing_ok=True)
            shutil.rmtree(place)


def record(stage: str, trials: list[Trial], command: str) -> None:
    """The figures of a stage, and those of all stages that there are."""
    kills, failed = sum(one.kills for one in trials), sum(one.failed for one in trials)
    found: dict[str, tuple[list[float], str]] = {
        'kills': ([kills], '>= 100'), 'lost': ([sum(one.lost for one in trials)], '0'),
        'duplicated': ([sum(one.duplicated for one in trials)], '0'),
        'byte_identical': ([all(one.identical for one in trials)], '1'),
        'unsaved_share': ([share for one in trials for share in one.unsaved], ''),
        'recomputed_share': ([share for one in trials for share in one.beyond], '<= 0.05'),
        'failure_rate_upper': ([binomial_interval(failed, kills, 0.9).high], ''),
    }  # fmt: skip
    for name, (samples, goal) in found.items():
        figures.append(TABLE, f'{name}_{stage}', samples, unit=UNITS[name], goal=goal, command=command)
    total()


def total() -> None:
    """Over all stages that there are."""
    rows = {row['figure']: row['value'] for row in figures.read(TABLE)}
    for name, (unit, goal) in TOTALS.items():
        values = [rows[f'{name}_{one}'] for one in STAGES if f'{name}_{one}' in rows]
        value = min(values) if name == 'byte_identical' else sum(values)
        figures.append(TABLE, name, [value], unit=unit, goal=goal, command='python -m tools.soak, once a stage')


def main() -> None:
    began, trials = time.monotonic(), list[Trial]()
    root = pathlib.Path(tempfile.mkdtemp(prefix='adx_soak_'))
    stages.set_up(root)
    soak = Soak(STAGES[_STAGE.value], root, random.Random(f'{_SEED.value}/{_STAGE.value}'))
    print(f'{_STAGE.value}: {len(soak.expected)} results in {soak.seconds:.1f} s of work, uninterrupted', flush=True)
    while sum(one.kills for one in trials) < _KILLS.value:
        if _MINUTES.value and time.monotonic() - began > 60 * _MINUTES.value:
            break
        trials.append(soak.trial())
        last = trials[-1]
        print(f'{last.kills} kills, {"FAILED" if last.failed else "ok"}: {last}', flush=True)
    if _RECORD.value:
        given = f'--stage={_STAGE.value} --kills={_KILLS.value} --minutes={_MINUTES.value:g} --record'
        record(_STAGE.value, trials, f'python -m tools.soak {given}')
    failed = sum(one.failed for one in trials)
    print(f'{sum(one.kills for one in trials)} kills in {len(trials)} runs; {failed} runs failed')
    if failed:
        print(f'they are kept in {root}')
    else:
        shutil.rmtree(root)


if __name__ == '__main__':
    program.start(main)
