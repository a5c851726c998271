"""The program as its user meets it: processes, signals, exit codes, and the same traces whatever happened."""

from __future__ import annotations

import json
import pathlib
import random
import shutil
import signal
import time
import types

import pytest

from adx.experiment import from_json, sweep
from adx.storage import Workdir, digest, hashes
from launch.config import load_config
from tests import programs, tiny
from tests.programs import KILLED, arguments, end, finished, run, start

TRACES = 9  # three prompts, three arms


@pytest.fixture(scope='module')
def place(tmp_path_factory) -> types.SimpleNamespace:
    """A teacher, a config and one complete run, whose compiled programs the other runs reuse."""
    place = programs.make_place(tmp_path_factory.mktemp('run'))
    place.first = run(place, 'complete')
    place.digest = digest(hashes(place.root / 'complete'))
    return place


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


@pytest.mark.parametrize('count', [2, pytest.param(4, marks=pytest.mark.slow)])
def test_replicas_make_the_traces_of_one_process(place, count):
    name = f'shards{count}'
    given = [arguments(place, name, f'--shard={i}', f'--num_shards={count}') for i in range(count)]
    ends = [end(shard) for shard in [start(place, *each) for each in given]]
    assert [code for code, _, _ in ends] == [0] * count, ends
    assert digest(hashes(place.root / name)) == place.digest


@pytest.mark.slow
def test_replicas_that_are_killed_anywhere_go_on_in_another_number(place):
    """Four, each killed at a moment of its own, then two, one of which is killed, then one."""
    moments = random.Random(0)
    for count, killed in ((4, 4), (2, 1)):
        given = [arguments(place, 'uneven', f'--shard={i}', f'--num_shards={count}') for i in range(count)]
        shards = [start(place, *each) for each in given]
        for shard in moments.sample(shards, killed):
            time.sleep(moments.uniform(0, 8 / killed))
            shard.kill()
        ends = [end(shard) for shard in shards]
        assert {code for code, _, _ in ends} <= {0, -signal.SIGKILL}, ends
    code, _, err = run(place, 'uneven')
    assert code == 0, err
    assert digest(hashes(place.root / 'uneven')) == place.digest
    lines = [line for path in (place.root / 'uneven' / 'private' / 'journal').iterdir() for line in path.open()]
    assert len(lines) == TRACES  # nothing was decoded twice


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
    assert "one of the arms, selections and rewrites ['plain', " in err


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


# The program, in which something that nobody foresaw is raised, and the one whose disk is full from the first file on.
BUG = """
from absl import app
from adx import pipeline
from launch import run

pipeline.generate = lambda *_: {}['no such key']
app.run(run.main, flags_parser=run.program.parse)
"""
FULL = """
import errno, os
from absl import app
from launch import run

def fsync(_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

os.fsync = fsync
app.run(run.main, flags_parser=run.program.parse)
"""


def test_rejected_rows_a_bug_and_a_full_disk_each_end_with_their_code(place):
    """Without a model: none of the three gets as far."""
    long = write_jsonl(place, 'only_long', json.dumps({'question': 'why ' * 400, 'id': '0'}))
    rejected = start(place, f'--config={long}', f'--workdir={place.root / "only_long"}')
    bug = start(place, *arguments(place, 'bug'), program=('-c', BUG))
    full = start(place, *arguments(place, 'full'), program=('-c', FULL))
    code, out, err = end(rejected)
    assert (code, '0 traces decoded' in out, '3 rejected' in out) == (5, True, True), err
    code, _, err = end(bug)
    assert (code, err.splitlines()[-1]) == (70, 'error: this is a bug in adx; please report the lines above')
    assert 'KeyError' in err
    code, _, err = end(full)
    assert (code, err.count('\n')) == (74, 1), err
    assert 'No space left on device; free some space and run the same command again' in err


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
