"""One program of several processes: the same traces as of one, whoever dies, and an end that names who did."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import time
import types
from collections.abc import Callable

import pytest

from adx.errors import WorkdirError
from adx.storage import Workdir, digest, hashes
from tests import programs
from tests.programs import KILLED, arguments, end, start, start_together


@pytest.fixture(scope='module')
def place(tmp_path_factory) -> types.SimpleNamespace:
    """A teacher and a config."""
    return programs.make_place(tmp_path_factory.mktemp('together'))


MESHES = [
    ('data', 2, ()),
    pytest.param('model', 2, (), marks=pytest.mark.slow),
    pytest.param('data', 4, ('--set=decode.slots=8', '--set=decode.prefill_rows=4'), marks=pytest.mark.slow),
]


@pytest.fixture(scope='module')
def one_arm(place) -> tuple[str, ...]:
    """Flags of a run of 12 traces."""
    config = place.root / 'one_arm.py'
    plain, soft = "Arm('plain'),", "Arm('cross_model_soft', CrossModelSoft(weight=0.3)),"
    config.write_text(pathlib.Path(place.config).read_text().replace(plain, '').replace(soft, ''))
    return f'--config={config}', '--set=samples=4'


@pytest.mark.parametrize(('axis', 'count', 'more'), MESHES)
def test_one_program_of_many_processes_is_killed_and_goes_on_to_the_traces_of_one(place, one_arm, axis, count, more):
    """Equal bit by bit over `data`; over `model` to rounding, which flips no token of so few."""
    alone, both = (place.root / f'{name}_{axis}{count}' for name in ('alone', 'both'))
    code, _, err = end(start(place, *one_arm, *more, f'--workdir={alone}'))
    assert code == 0, err
    given = (*one_arm, *more, f'--workdir={both}', f'--set=mesh.{axis}={count}')
    first, *others = map(end, start_together(place, *given, count=count, program=('-c', KILLED)))
    assert first[0] == -signal.SIGKILL, first
    for one in others:
        assert one[0] in (75, -signal.SIGABRT), one  # whether it missed process 0 or JAX's service in it first
    assert len(Workdir(both).finished()) == 4
    # Only process 0 needs to see the workdir.
    ends = list(map(end, start_together(place, *given, count=count, theirs=('--workdir=/proc/none',))))
    assert [code for code, _, _ in ends] == [0] * count, ends
    assert '8 traces decoded' in ends[0][1]
    assert not any('traces decoded' in out for _, out, _ in ends[1:])
    assert digest(hashes(both)) == digest(hashes(alone))
    # Another number of processes finds nothing left to do.
    code, out, err = end(start(place, *one_arm, f'--workdir={both}'))
    assert (code, '0 traces decoded (none), 12 were there' in out) == (0, True), err


PARENT = ('-m', 'launch.parent')


def children_of(process) -> list[int]:
    """Process ids, in the order of their ranks; waits until there are two."""
    path = pathlib.Path(f'/proc/{process.pid}/task/{process.pid}/children')
    while process.poll() is None and len(found := path.read_text().split()) < 2:
        time.sleep(0.05)
    return sorted(map(int, found))


def wait_for_traces(process, workdir, count: int) -> None:
    while process.poll() is None:
        with contextlib.suppress(WorkdirError):
            if len(Workdir(workdir).finished()) >= count:
                return
        time.sleep(0.05)


@pytest.mark.slow
def test_a_parent_ends_its_processes_as_one_and_the_same_command_continues(place, one_arm):
    """Stopped by SIGTERM, then a process killed, then one stopped in its tracks, then left alone."""
    many = '--set=samples=64'
    alone, both = place.root / 'alone_parent', place.root / 'both_parent'
    code, _, err = end(start(place, *one_arm, many, f'--workdir={alone}'))
    assert code == 0, err
    given = ('--processes=2', '--', *one_arm, many, f'--workdir={both}', '--set=mesh.data=2', '--silent_seconds=5')

    def stop(how: Callable[[subprocess.Popen[str]], None], more: int) -> tuple[float, int, str]:
        parent = start(place, *given, program=PARENT)
        wait_for_traces(parent, both, len(Workdir(both).finished()) + more if both.exists() else more)
        began = time.monotonic()
        how(parent)
        code, _, err = end(parent)
        return time.monotonic() - began, code, err.splitlines()[-1]

    took, *found = stop(lambda parent: parent.terminate(), 4)
    assert found == [75, 'error: stopped by SIGTERM; what is finished is saved, the same command continues']
    assert took < 15  # the ten seconds of a scheduler, on a machine that is busy with other tests
    took, code, why = stop(lambda parent: os.kill(children_of(parent)[1], signal.SIGKILL), 1)
    assert (code, why.split(',')[0]) == (75, 'error: process 1 was killed by SIGKILL')
    assert took < 40  # 10 to end by themselves, 10 more after SIGTERM
    took, code, why = stop(lambda parent: os.kill(children_of(parent)[1], signal.SIGSTOP), 1)
    assert (code, why.split(';')[0]) == (75, 'error: process 1 died or was silent for too long')
    assert took < 60  # --silent_seconds more
    parent = start(place, *given, program=PARENT)
    code, _, err = end(parent)
    assert code == 0, err
    assert digest(hashes(both)) == digest(hashes(alone))


def test_whoever_died_or_never_started_is_named(place, one_arm):
    """Before anything is decoded: by the parent, and by a process that waits for another at the roll call."""
    given = (*one_arm, f'--workdir={place.root / "never"}', '--start_seconds=2')
    parent = start(place, '--processes=2', '--', *given, program=PARENT)
    os.kill(children_of(parent)[1], signal.SIGKILL)
    two = (f'--coordinator=127.0.0.1:{programs.free_port()}', '--num_processes=2', '--process_id=0')
    code, _, err = end(start(place, *given, '--distributed', *two))
    assert code == 75, err
    assert err.startswith('error: process 1 of 2 did not start within 2 s')
    assert err.count('\n') == 1, err
    code, _, err = end(parent)
    assert code == 75, err
    assert err.splitlines()[-1].startswith('error: process 1 was killed by SIGKILL, the others were ended')
    assert not (place.root / 'never').exists()


@pytest.mark.slow
def test_directions_are_prepared_by_one_process_and_by_two(place):
    """On other devices the gradients are the same to rounding; what they belong to is the same."""
    config = place.root / 'slope.py'
    text = pathlib.Path(place.config).read_text()
    still = "Arm('plain', Antidistillation(lam=0.0))"  # wants derivatives and leaves the teacher as it is
    config.write_text('from adx.defences import Antidistillation\n' + text.replace("Arm('plain')", still))
    given = (f'--config={config}', '--set=derivative.prompts=2', '--set=derivative.max_new_tokens=8')
    alone, both = (place.root / name for name in ('prepared', 'prepared_by_two'))
    code, out, err = end(start(place, *given, f'--workdir={alone}', '--dry_run'))
    assert code == 0, err
    assert "no directions of ['proxy_0']" in out
    code, _, err = end(start(place, *given, f'--workdir={alone}', '--stages=prepare', '--shard=0', '--num_shards=2'))
    assert (code, err.count('\n')) == (2, 1), err
    code, out, err = end(start(place, *given, f'--workdir={alone}', '--stages=prepare,generate'))
    assert code == 0, err
    assert 'directions of 1 proxies are saved' in out
    assert '9 traces decoded' in out
    assert any(json.loads(line)['event'] == 'directions' for line in err.splitlines())
    more = (*given, f'--workdir={both}', '--set=mesh.data=2', '--stages=prepare,generate')
    ends = list(map(end, start_together(place, *more)))
    assert [code for code, _, _ in ends] == [0, 0], ends
    assert digest(hashes(both)) == digest(hashes(alone))
    where = pathlib.Path('private', 'directions', 'proxy_0', 'identity.json')
    one, two = (json.loads((path / where).read_text()) for path in (alone, both))
    (ours,), (theirs,) = one.pop('directions'), two.pop('directions')
    assert one == two
    assert theirs['tokens'] == ours['tokens']
    assert theirs['norms'] == pytest.approx(ours['norms'], rel=1e-4)


def test_what_one_process_refuses_ends_both_in_one_line(place):
    given = arguments(place, 'refused', '--set=mesh.data=2')
    for theirs, message in (('--set=seed=1', '[1] have other requests'), ('--set=sead=1', "Did you mean 'seed'")):
        for code, _, err in map(end, start_together(place, *given, theirs=(theirs,))):
            assert code == 2, err
            assert message in err
            assert err.count('\n') == 1, err
    assert not (place.root / 'refused').exists()
