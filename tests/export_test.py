"""A release holds the allow-list and nothing else, appears whole, and reads back in every format."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import subprocess
import sys

import pytest
from bucket_test import bucket  # noqa: F401  (a fixture)
from etils import epath
from storage_test import make_trace, open_workdir

from adx import export as export_lib
from adx.datasets.chat import Prompting, encode_conversation, render
from adx.errors import ConfigError, InputError, StorageError, WorkdirError
from adx.export import FIELDS, FORMATS, export
from adx.types import RequestId, Trace
from tests import tiny

QUESTION = 'Was kostet 1 € — „genau“?'
SETTING = 'canarysetting.lam=0.731'  # as a sweep names it
CANARY_NUMBERS = (918273645, 827364591)


def defended(row: int) -> Trace:
    """A trace with a canary in every field that must stay private."""
    return make_trace(
        row,
        setting=SETTING,
        messages=({'role': 'user', 'content': QUESTION, 'canary_key': 'canary_message'},),
        reasoning='canary_reasoning',
        answer='canary_answer',
        tokens=CANARY_NUMBERS,
        stop='canary_stop',
        prompt_tokens=CANARY_NUMBERS[0],
        defence={'type': 'canary_type', 'strength': CANARY_NUMBERS[1]},
        sampling={'canary_sampling': CANARY_NUMBERS[0]},
        seed=CANARY_NUMBERS[0],
        gold='canary_gold',
        statistics={'canary_statistic': [CANARY_NUMBERS[1]]},
        models={'teacher': 'canary_model'},
        experiment='canary_experiment',
        policy='canary_policy',
        terms='canary_terms',
        customer='canary_customer',
        versions={'canary_version': '1'},
    )


@pytest.fixture
def workdir(tmp_path):
    path = tmp_path / 'run'
    with open_workdir(path, {'canary_experiment': CANARY_NUMBERS}, 'canary_hash') as writer:
        writer.append([defended(row) for row in (2, 0, 1)])
        writer.append([make_trace(0), make_trace(1)])
        writer.reject(f'gsm8k/test/3/0/{SETTING}', 'canary_reason')
        writer.heartbeat({'totals': {SETTING: 5, 'plain': 2}, 'canary_beat': 1})
    return path


def release(path, out_format, setting=SETTING, licence='cc-by-nc-4.0', disclosure='public') -> pathlib.Path:
    return pathlib.Path(export(path, out_format, setting, licence, disclosure))


def read_chat(path):
    return [json.loads(line) for line in (path / 'traces.jsonl').read_text('utf-8').splitlines()]


def read_parquet(path):
    import pyarrow.parquet as pq

    table = pq.read_table(path / 'traces.parquet')
    assert not table.schema.metadata
    return table.to_pylist()


def read_tfds(path):
    """In a process of its own, which never loads TensorFlow."""
    code = (
        'import json, sys, tensorflow_datasets as tfds\n'
        "source = tfds.builder_from_directory(sys.argv[1]).as_data_source(split='train')\n"
        'rows = [dict(source[i]) for i in range(len(source))]\n'
        "assert 'tensorflow' not in sys.modules\n"
        'print(json.dumps(rows, default=lambda x: x.decode() if isinstance(x, bytes) else x.tolist()))'
    )
    command = [sys.executable, '-c', code, str(path / 'traces' / '1.0.0')]
    rows = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    for row in rows:
        turns = row['messages']
        pairs = zip(turns['role'], turns['content'], strict=True)
        row['messages'] = [{'role': role, 'content': content} for role, content in pairs]
    return rows


READERS = {'chat': read_chat, 'parquet': read_parquet, 'tfds': read_tfds}


def all_bytes(folder) -> bytes:
    """Every path and every byte under a folder."""
    paths = sorted(pathlib.Path(folder).rglob('*'))
    return b''.join(str(p).encode() + (p.read_bytes() if p.is_file() else b'') for p in paths)


# Two students: of another vocabulary, and with a template of its own.
TURNS = "{% for m in messages %}<|im_start|>{{ m['role'] | upper }}:\n{{ m['content'] }}\n<|im_end|>{% endfor %}"
OPENS = '{% if add_generation_prompt %}<|im_start|>ASSISTANT:\n{% endif %}'
STUDENTS = (tiny.make_tokenizer(330), dataclasses.replace(tiny.make_tokenizer(), template=TURNS + OPENS))
PROMPTING = Prompting(think_open='', think_close='')


def check_teaches(row, text):
    """A row's tokens under each student's own template give the conversation and the text back."""
    *asked, last = row['messages']
    for student in STUDENTS:
        prompt, completion = encode_conversation(asked, last['content'], student, PROMPTING)
        assert student.decode(completion) == row['text'] == text
        assert completion[-1] == student.eos_id
        spelt = student.backend.decode([*prompt, *completion], skip_special_tokens=False)
        whole = render(row['messages'], student, PROMPTING, add_generation_prompt=False)
        assert whole.startswith(spelt.removesuffix(tiny.END))
        assert student.encode(whole)[: len(prompt) + len(completion) - 1] == [*prompt, *completion[:-1]]


@pytest.mark.parametrize('out_format', FORMATS)
class TestFormats:
    def test_reads_back(self, workdir, out_format):
        rows = READERS[out_format](release(workdir, out_format))
        assert [row['id'] for row in rows] == [f'gsm8k/test/{row}/0' for row in range(3)]
        assert all(set(row) == set(FIELDS) for row in rows)
        assert rows[1]['text'] == defended(1).text
        assert rows[1]['messages'] == [
            {'role': 'user', 'content': QUESTION},
            {'role': 'assistant', 'content': defended(1).text},
        ]
        assert rows[1]['licence'] == 'cc-by-nc-4.0'
        assert 'under an anti-distillation defence' in rows[1]['policy']
        check_teaches(rows[1], defended(1).text)

    def test_nothing_private_leaves(self, workdir, out_format):
        folder = release(workdir, out_format)
        # Parquet and ArrayRecord compress, so what they decode to is searched too.
        leaving = all_bytes(folder).decode('latin-1') + json.dumps(READERS[out_format](folder))
        private = all_bytes(workdir / 'private').decode('latin-1')
        for secret in ('canary', SETTING, *map(str, CANARY_NUMBERS)):
            assert secret in private
            assert secret not in leaving

    def test_the_same_again_changes_nothing_and_more_replaces(self, workdir, out_format):
        folder = release(workdir, out_format)
        before, inode = all_bytes(folder), folder.stat().st_ino
        assert release(workdir, out_format) == folder
        assert (all_bytes(folder), folder.stat().st_ino) == (before, inode)
        with open_workdir(workdir, {}, 'canary_hash') as writer:
            writer.append([defended(4)])
        assert len(READERS[out_format](release(workdir, out_format))) == 4

    def test_a_killed_export_leaves_no_part(self, workdir, out_format, monkeypatch):
        before = all_bytes(release(workdir, 'chat', 'plain', disclosure=''))

        def full(*_):
            raise OSError(28, 'No space left on device')

        monkeypatch.setattr(export_lib, '_publish', full)
        with pytest.raises(StorageError, match='journals are safe: No space left'):
            release(workdir, out_format)
        assert all_bytes(workdir / 'release') == before
        assert not list((workdir / 'private').glob('export.new*'))


class TestRelease:
    def test_holds_one_setting(self, workdir):
        release(workdir, 'parquet')
        rows = read_chat(release(workdir, 'chat', 'plain', disclosure=''))
        assert len(rows) == 2
        assert 'defence' not in rows[0]['policy']
        assert sorted(os.listdir(workdir / 'release')) == ['README.md', 'traces.jsonl']

    def test_card_says_what_it_is(self, workdir):
        card = (release(workdir, 'chat', disclosure='none: a lab study') / 'README.md').read_text()
        for line in (
            'license: "cc-by-nc-4.0"',
            '| Traces | 3 |',
            '| Missing | 2 of 5 (the run was not complete when this was written) |',
            '| Rejected | 1 of the missing could not be made |',
            '| Defended | yes: sampled under an anti-distillation defence |',
            '| Disclosure | none: a lab study |',
        ):
            assert line in card.splitlines()
        card = (release(workdir, 'chat', 'plain', disclosure='') / 'README.md').read_text()
        assert '| Missing | 0 of 2 |' in card
        assert '| Defended | no |' in card

    def test_does_not_say_which_traces_of_a_policy_are_defended(self, tmp_path):
        with open_workdir(tmp_path) as writer:
            writer.append([make_trace(0, 'lane', terms='distillation'), defended(1)])
            writer.append([dataclasses.replace(defended(2), request_id=make_trace(2, 'lane').request_id)])
        rows = read_chat(release(tmp_path, 'chat', 'lane'))
        assert len({row['policy'] for row in rows}) == 1
        assert 'may have been sampled under an anti-distillation defence' in rows[0]['policy']
        card = (tmp_path / 'release' / 'README.md').read_text()
        assert '| Defended | in part: sampled under an anti-distillation defence |' in card
        with pytest.raises(ConfigError, match='disclosure is empty'):
            release(tmp_path, 'chat', 'lane', disclosure='')

    def test_can_be_read_by_others(self, workdir):
        folder = release(workdir, 'chat')
        assert folder.stat().st_mode & 0o777 == 0o777 & ~_umask()

    @pytest.mark.parametrize(
        ('changes', 'error', 'message'),
        [
            ({'out_format': 'csv'}, ConfigError, "'csv' is unknown; it must be one of chat, parquet, tfds"),
            ({'setting': 'plane'}, InputError, f'has no finished trace of .*: {SETTING}, plain'),
            ({'licence': ''}, ConfigError, 'licence is empty'),
            ({'licence': 'a\nb'}, ConfigError, 'one line'),
            ({'disclosure': ''}, ConfigError, 'disclosure is empty'),
            ({'disclosure': 'none: '}, ConfigError, 'one line, trimmed'),
            ({'disclosure': 'none:'}, ConfigError, 'must be .public., .contract.'),
            ({'disclosure': 'secret'}, ConfigError, 'must be .public., .contract.'),
        ],
    )
    def test_refuses_with_the_fix(self, workdir, changes, error, message):
        with pytest.raises(error, match=message):
            release(workdir, **({'out_format': 'chat'} | changes))
        assert not (workdir / 'release').exists()

    def test_refuses_what_is_no_workdir(self, tmp_path):
        with pytest.raises(WorkdirError, match='is no workdir'):
            release(tmp_path, 'chat')
        assert not list(tmp_path.iterdir())

    def test_to_an_object_store(self, bucket):  # noqa: F811
        with open_workdir(bucket) as writer:
            writer.append([make_trace(0)])
        for out_format in ('tfds', 'chat'):
            folder = epath.Path(export(bucket, out_format, 'plain', 'cc0-1.0'))
        assert sorted(path.name for path in folder.iterdir()) == ['README.md', 'traces.jsonl']
        row = json.loads((folder / 'traces.jsonl').read_text())
        assert row['id'] == RequestId.parse(make_trace(0).request_id).noise_name


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_command(workdir):
    command = [sys.executable, '-m', 'tools.export_traces', f'--workdir={workdir}', '--licence=cc0-1.0']
    run = subprocess.run([*command, '--setting=plain'], capture_output=True, text=True)
    assert (run.returncode, run.stdout) == (0, f'{workdir}/release\n')
    run = subprocess.run([*command, f'--setting={SETTING}'], capture_output=True, text=True)
    assert run.returncode == 2
    assert run.stderr.startswith('error: disclosure is empty')
    assert len(run.stderr.splitlines()) == 1
