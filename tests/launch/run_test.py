"""The program as its user meets it: processes, signals, exit codes, and the same traces whatever happened."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import types

import pytest

from adx.experiment import from_json, sweep
from adx.storage import Workdir, digest, hashes
from launch.config import load_config
from tests import tiny

ROOT = pathlib.Path(__file__).parents[2]
TRACES = 9  # three prompts, three arms
LIMIT = 240  # seconds, of a program that takes 5 to 30
# The program, which kills itself without notice once it has saved its fourth trace.
KILLED = """
import os, signal
from absl import app
from adx import pipeline
from launch import run

add = pipeline._Saver.add

def add_and_die(self, trace):
    add(self, trace)
    if self.report.done == 4:
        os.kill(os.getpid(), signal.SIGKILL)

pipeline.FLUSH_SECONDS = 0.0
pipeline._Saver.add = add_and_die
app.run(run.main, flags_parser=run.program.parse)
"""


@pytest.fixture(scope='module')
def place(tmp_path_factory) -> types.SimpleNamespace:
    """A teacher, a config and one complete run, whose compiled programs the other runs reuse."""
    root = tmp_path_factory.mktemp('run')
    teacher = tiny.write_teacher(root / 'teacher')
    config = tiny.write_config(root / 'config.py', teacher)
    # Compile time is most of a run: share the programs, and leave them unoptimised.
    environment = os.environ | {
        'PYTHONPATH': str(ROOT),
        'PYTHONFAULTHANDLER': '1',
        'JAX_PLATFORMS': 'cpu',
        'XLA_FLAGS': '--xla_backend_optimization_level=0',
        'JAX_COMPILATION_CACHE_DIR': str(root / 'programs'),
        'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
    }
    place = types.SimpleNamespace(root=root, teacher=teacher, config=config, environment=environment)
    place.first = run(place, 'complete')
    place.digest = digest(hashes(root / 'complete'))
    return place


def start(place, *arguments: str, program=('-m', 'launch.run'), **variables: str) -> subprocess.Popen[str]:
    command = [sys.executable, *program, *arguments]
    pipes = {'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE, 'text': True}
    return subprocess.Popen(command, cwd=place.root, env=place.environment | variables, **pipes)


def end(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """(exit code, stdout, stderr)"""
    try:
        out, err = process.communicate(timeout=LIMIT)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGABRT)  # shows where it hangs
        out, err = process.communicate()
    return process.returncode, out, err


def arguments(place, workdir: str, *more: str) -> tuple[str, ...]:
    return (f'--config={place.config}', f'--workdir={place.root / workdir}', *more)


def run(place, workdir: str, *more: str) -> tuple[int, str, str]:
    return end(start(place, *arguments(place, workdir, *more)))


def finished(place, workdir: str) -> int:
    return len(Workdir(place.root / workdir).finished())


def test_a_run_completes(place):
    code, out, err = place.first
    assert code == 0, err
    assert f'{TRACES} traces decoded' in out
    assert finished(place, 'complete') == TRACES
    first = json.loads(err.splitlines()[0])
    assert (first['event'], first['done'], first['total']) == ('progress', 0, TRACES)
    assert first['bad_lines_skipped'] == 0
    assert set(first['near_duplicates_dropped']) == {'holdout', 'train', 'tune', 'attack_val', 'test'}
    traces = list(Workdir(place.root / 'complete').traces())
    settings = {trace.request_id.rsplit('/', 1)[1] for trace in traces}
    assert settings == {'plain', 'product_of_experts', 'cross_model_soft'}
    assert not any(json.dumps(trace.text) in err for trace in traces if trace.text)


def test_a_complete_run_stays_as_it_is(place):
    """Its shapes may change, what it is may not."""
    code, out, err = run(place, 'complete', '--set=decode.slots=8')
    assert code == 0, err
    assert f'0 traces decoded (none), {TRACES} were there' in out
    code, _, err = run(place, 'complete', '--set=seed=1')
    assert code == 4
    assert 'seed: 0 != 1' in err
    assert digest(hashes(place.root / 'complete')) == place.digest


def test_a_killed_run_goes_on_to_the_same_traces(place):
    code, _, err = end(start(place, *arguments(place, 'killed'), program=('-c', KILLED)))
    assert code == -signal.SIGKILL, err
    assert finished(place, 'killed') == 4
    code, out, err = run(place, 'killed', '--log_text')
    assert code == 0, err
    assert f'{TRACES - 4} traces decoded' in out
    lines = [json.loads(line) for line in err.splitlines()]
    shown = {line['request_id']: line['text'] for line in lines if line['event'] == 'trace'}
    texts = {trace.request_id: trace.text for trace in Workdir(place.root / 'killed').traces()}
    assert len(shown) == TRACES - 4
    assert shown.items() <= texts.items()
    assert digest(hashes(place.root / 'killed')) == place.digest


def test_sigterm_stops_a_run_that_the_same_command_resumes(place):
    stopped = start(place, *arguments(place, 'stopped'))
    assert json.loads(stopped.stderr.readline())['event'] == 'progress'
    stopped.send_signal(signal.SIGTERM)
    code, _, err = end(stopped)
    assert code == 75, err
    assert err.splitlines()[-1].startswith('error: stopped by SIGTERM')
    assert 'Traceback' not in err
    code, _, err = run(place, 'stopped')
    assert code == 0, err
    assert digest(hashes(place.root / 'stopped')) == place.digest


def test_two_replicas_make_the_traces_of_one_process(place):
    shards = [start(place, *arguments(place, 'shards', f'--shard={i}', '--num_shards=2')) for i in range(2)]
    ends = [end(shard) for shard in shards]
    assert [code for code, _, _ in ends] == [0, 0], ends
    assert digest(hashes(place.root / 'shards')) == place.digest


def start_both(place, *given: str, ours=(), theirs=(), program=('-m', 'launch.run')) -> list[subprocess.Popen[str]]:
    """One program of two processes; `ours` and `program` are for process 0 alone, `theirs` for process 1."""
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    given = (*given, '--distributed', f'--coordinator=127.0.0.1:{port}', '--num_processes=2')
    first = start(place, *given, '--process_id=0', *ours, program=program)
    return [first, start(place, *given, '--process_id=1', *theirs)]


@pytest.mark.parametrize('axis', ['data', pytest.param('model', marks=pytest.mark.slow)])
def test_one_program_of_two_processes_is_killed_and_goes_on_to_the_traces_of_one_process(place, axis):
    """Equal bit by bit over `data`; over `model` to rounding, which flips no token of so few."""
    one_arm = place.root / f'{axis}.py'
    plain, soft = "Arm('plain'),", "Arm('cross_model_soft', CrossModelSoft(weight=0.3)),"
    one_arm.write_text(pathlib.Path(place.config).read_text().replace(plain, '').replace(soft, ''))
    samples = (f'--config={one_arm}', '--set=samples=4')  # 12 traces
    alone, both = (place.root / f'{name}_{axis}' for name in ('alone', 'both'))
    code, _, err = end(start(place, *samples, f'--workdir={alone}'))
    assert code == 0, err
    given = (*samples, f'--workdir={both}', f'--set=mesh.{axis}=2')
    first, second = map(end, start_both(place, *given, program=('-c', KILLED)))
    assert first[0] == -signal.SIGKILL, first
    assert second[0] in (75, -signal.SIGABRT), second  # whether it missed process 0 or JAX's service in it first
    assert len(Workdir(both).finished()) == 4
    # Only process 0 needs to see the workdir.
    ends = list(map(end, start_both(place, *given, theirs=('--workdir=/proc/none',))))
    assert [code for code, _, _ in ends] == [0, 0], ends
    assert '8 traces decoded' in ends[0][1]
    assert 'traces decoded' not in ends[1][1]
    assert digest(hashes(both)) == digest(hashes(alone))


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
    assert f'{TRACES} traces decoded' in out
    assert any(json.loads(line)['event'] == 'directions' for line in err.splitlines())
    more = (*given, f'--workdir={both}', '--set=mesh.data=2', '--stages=prepare,generate')
    ends = list(map(end, start_both(place, *more)))
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
        for code, _, err in map(end, start_both(place, *given, theirs=(theirs,))):
            assert code == 2, err
            assert message in err
            assert err.count('\n') == 1, err
    assert not (place.root / 'refused').exists()


@pytest.mark.slow
def test_a_selection_is_made_and_released(place):
    config = place.root / 'selected.py'
    fields = "samples=2, selections=(Selection('hard', 'plain', 'max_nll'),), disclosure"
    text = pathlib.Path(place.config).read_text().replace('disclosure', fields)
    config.write_text(text.replace('\nfrom adx', '\nfrom adx.selection import Selection\nfrom adx', 1))
    given = (f'--config={config}', f'--workdir={place.root / "selected"}')
    code, _, err = end(start(place, *given, '--stages=select'))
    assert code == 4, err
    code, out, err = end(start(place, *given, '--stages=generate,select,export', '--setting=hard'))
    assert code == 0, err
    assert 'selection hard: 3 prompts, ' in out
    chosen = {record['request_id'] for record in Workdir(place.root / 'selected').selection('hard')}
    rows = (place.root / 'selected' / 'release' / 'traces.jsonl').read_text().splitlines()
    assert {f'{json.loads(row)["id"]}/plain' for row in rows} == chosen
    assert len(chosen) == 3
    code, _, err = end(start(place, *given, '--stages=export'))
    assert code == 2, err
    assert "one of the arms and selections ['plain', " in err


def write_jsonl(place, name: str, *lines: str) -> str:
    """A config whose prompts are these lines; its path."""
    data = place.root / f'{name}.jsonl'
    data.write_text('\n'.join(lines) + '\n')
    return tiny.write_config(place.root / f'{name}.py', place.teacher, f'Jsonl({str(data)!r})', 'all')


def without_template(place) -> str:
    """The teacher as a base model."""
    path = place.root / 'base'
    shutil.copytree(place.teacher, path)
    (path / 'chat_template.jinja').unlink()
    return str(path)


def test_wrong_input_is_one_line_and_an_exit_code(place):
    broken = write_jsonl(place, 'broken', '{"question": "How many?"}', '{"question": ')
    base = without_template(place)
    cases = [
        (['--workdirr=x'], 2, 'workdirr'),
        (arguments(place, 'x', '--set=decode.slotz=8'), 2, "Did you mean 'slots'"),
        (arguments(place, 'x', '--sweep=seed=1,2'), 2, 'write --sweep arms'),
        (['--config=none.py'], 2, 'none.py does not exist'),
        (arguments(place, 'x', '--stages='), 2, 'no stage'),
        (arguments(place, 'x', '--set=teacher.source=no_such_model'), 3, 'no_such_model'),
        (arguments(place, 'x', '--set=proxies.0.exit_layer=9'), 3, 'num_layers = 9'),
        ([f'--config={broken}', '--workdir=x'], 3, 'broken.jsonl, line 2'),
        (arguments(place, 'x', '--set=prompting.template_opens_think=True'), 2, 'set it to False'),
        (arguments(place, 'x', *(f'--set={role}.source={base}' for role in ('teacher', 'proxies.0'))), 3, 'no chat'),
    ]
    for started, code, message in [(start(place, *given), code, message) for given, code, message in cases]:
        found, out, err = end(started)
        assert found == code, err
        assert message in err
        assert err.count('\n') == 1, err
        assert out == ''
    assert not (place.root / 'x').exists()


@pytest.mark.slow
def test_a_prompt_that_is_too_long_is_rejected_and_the_others_are_served(place):
    questions = ['How many?', 'why ' * 400]
    rows = [json.dumps({'question': question, 'id': str(i)}) for i, question in enumerate(questions)]
    config = write_jsonl(place, 'long', *rows)
    code, out, err = end(start(place, f'--config={config}', f'--workdir={place.root / "long"}'))
    assert code == 5, err
    assert '3 traces decoded' in out
    assert '3 rejected' in out
    rejected = Workdir(place.root / 'long').rejected()
    assert {id_.split('/')[2] for id_ in rejected} == {'1'}
    assert 'there is room for 320' in next(iter(rejected.values()))


def test_a_scheduler_that_gives_no_numbers_is_a_wrong_flag(place):
    given = arguments(place, 'x')
    code, _, err = end(start(place, *given, SLURM_PROCID='first', SLURM_NTASKS='2'))
    assert code == 2, err
    assert "SLURM_PROCID='first'" in err
    assert not (place.root / 'x').exists()


def test_dry_run_and_status_print_json(place):
    gammas = 'arms.product_of_experts.defence.gamma=0.1,0.2'
    dry = start(place, f'--config={place.config}', f'--sweep={gammas}', '--dry_run')
    status = start(place, f'--workdir={place.root / "complete"}', '--status')
    code, out, err = end(dry)
    assert code == 0, err
    shown, rest = json.JSONDecoder().raw_decode(out)
    assert from_json(shown) == sweep(load_config(place.config), [gammas])
    assert f'{TRACES + 3} traces' in out[rest:]
    code, out, err = end(status)
    assert code == 0, err
    shown = json.loads(out)
    assert (shown['done'], shown['total'], shown['running']) == (TRACES, TRACES, 0)
