"""Malformed files of every format that adx reads end in one line that explains them, never in another error.

Hypothesis takes a sound file and cuts it, changes bytes of it, or puts other values into its JSON. It must then be
refused by an AdxError (a ValueError at the inner border of journals) or be read, within seconds. `./tools/test --slow`
tries more.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import shutil

import pytest
from etils import epath
from hypothesis import given, settings
from hypothesis import strategies as st
from malformed_files import PATIENT, VALUES, as_text, counted, damaged, disturbed, header, refused_or_read, tolerates
from storage_test import make_trace, open_workdir
from studies import make_study

from adx import checkpoints, export, journal, keys, orbax_io, outcomes_io, rewrites_io, safetensors_io, storage, watch
from adx.datasets import Jsonl
from adx.datasets.tokenizing import load_tokenizer
from adx.errors import AdxError
from adx.experiment import check, from_json, override, sweep, to_json
from adx.outcomes import Outcome, ThreatModel
from adx.storage import Workdir
from adx.study import check as check_study
from launch.config import load_config
from tests import tiny

counts = counted(25, 400)


@pytest.fixture(scope='module')
def teacher(tmp_path_factory) -> pathlib.Path:
    return pathlib.Path(tiny.write_teacher(tmp_path_factory.mktemp('fuzz') / 'teacher'))


@pytest.fixture
def workdir(tmp_path) -> pathlib.Path:
    with open_workdir(tmp_path) as writer:
        writer.append([make_trace(row) for row in range(3)])
        writer.reject('gsm8k/test/9/0/plain', 'too long')
        writer.keep_policy('policy', {'a': 1})
        writer.heartbeat({'totals': {'plain': 4}, 'tokens_per_second': 1.0, 'seconds_left': 2.0, 'occupancy': 0.5})
    return tmp_path


@counts
@pytest.mark.parametrize('row', [
    {'question': 'How many?', 'answer': '4', 'id': 'a', 'customer': 'c'},
    {'messages': [{'role': 'user', 'content': 'How many?'}], 'answer': 4},
], ids=['question', 'chat'])  # fmt: skip
def test_prompts(tmp_path, row, examples):
    path = tmp_path / 'rows.jsonl'
    path.write_text(f'{json.dumps(row)}\n{json.dumps(row | {"id": "b"})}\n')
    tolerates(path, lambda: Jsonl(str(path)).prompts('all'), examples)


@counts
def test_traces(workdir, examples):
    (path,) = (workdir / 'private' / 'journal').iterdir()

    def read():
        place = Workdir(workdir)
        place.finished()
        list(place.traces())
        storage.hashes(workdir)
        with open_workdir(workdir):  # it may cut what is torn
            pass

    tolerates(path, read, examples)


@counts
def test_a_trace(examples):
    line = journal.trace_to_json(make_trace(1))

    @settings(max_examples=4 * examples, **PATIENT)
    @given(st.one_of(disturbed(json.loads(line)).map(as_text), damaged(line.encode())))
    def check_one(data):
        with refused_or_read(ValueError):
            storage.trace_hash(journal.trace_from_json(data))

    check_one()


@counts
@pytest.mark.parametrize('name', ['experiment.json', 'heartbeat/0-of-1.json', 'rejected'])
def test_the_rest_of_a_workdir(workdir, name, examples):
    path = workdir / 'private' / name
    path = next(path.iterdir()) if path.is_dir() else path

    def read():
        watch.status(workdir)
        with open_workdir(workdir):
            pass

    tolerates(path, read, examples)


@counts
def test_selections(workdir, examples):
    path = workdir / 'private' / 'selections' / 'first.jsonl'
    path.parent.mkdir()
    path.write_text(json.dumps({'request_id': make_trace(1).request_id, 'how': 'first'}))
    tolerates(path, lambda: Workdir(workdir).selection('first'), examples)


@counts
@pytest.mark.parametrize('name', ['identity.json', 'rewrite.x.jsonl'])
def test_rewrites(workdir, name, examples):
    place = workdir / 'private' / 'rewrites' / 'said'
    place.mkdir(parents=True)
    (place / 'identity.json').write_text(json.dumps({'rewrite': {'of': 'plain', 'name': 'said'}}))
    record = {
        'format_version': 1, 'request_id': make_trace(1).request_id, 'text': 'b', 'accepted': 0, 'refusals': [],
        'tokens': [1, 2], 'reasoning': 'b', 'answer': '',
    }  # fmt: skip
    (place / 'rewrite.x.jsonl').write_text(json.dumps(record) + '\n')
    tolerates(place / name, lambda: list(rewrites_io.rewritten(Workdir(workdir), 'said')), examples)


@counts
@pytest.mark.parametrize('name', ['study.json', 'outcomes/distil-s-sft.x.jsonl'])
def test_studies(tmp_path, name, examples):
    outcomes_io.claim(str(tmp_path), {'a': {'b': [1, 2]}})
    (tmp_path / 'private' / 'outcomes').mkdir()
    one = Outcome(
        arm='plain', role='defence', attack='sft', source='clean', student='s', seen=False, seed=0,
        setting={'steps': 2}, split='tune', prompts='p', correct=(True,), rates={'unparsed': 0.5},
        threat=ThreatModel(1, 1, 1, 1, 's', 1, 1), curve=({'step': 1},),
    )  # fmt: skip
    record = {'format_version': 1, 'request_id': 'x', 'outcome': dataclasses.asdict(one)}
    (tmp_path / 'private' / 'outcomes' / 'distil-s-sft.x.jsonl').write_text(json.dumps(record) + '\n')

    def read():
        outcomes_io.claim(str(tmp_path), {'a': {'b': [1, 2]}})
        outcomes_io.read(str(tmp_path))

    tolerates(tmp_path / 'private' / name, read, examples)


@counts
def test_keys(tmp_path, examples):
    path = tmp_path / 'a.1.key'
    keys._write(epath.Path(path), b'k' * 32)
    tolerates(path, lambda: (keys.read(path), keys.epochs(tmp_path, 'a')), examples)


@counts
@pytest.mark.parametrize('name', ['config.json', 'model.safetensors'])
def test_checkpoints(teacher, tmp_path, name, examples):
    place = tmp_path / 'model'
    shutil.copytree(teacher, place)
    tolerates(place / name, lambda: checkpoints.read_config(str(place)), examples)


@counts
def test_the_index_of_shards(teacher, tmp_path, examples):
    place = tmp_path / 'model'
    shutil.copytree(teacher, place)
    os.replace(place / 'model.safetensors', place / 'part.safetensors')
    names = sorted(header((place / 'part.safetensors').read_bytes()))
    index = {'weight_map': {name: 'part.safetensors' for name in names if name != '__metadata__'}}
    (place / safetensors_io.INDEX).write_text(json.dumps(index))
    tolerates(place / safetensors_io.INDEX, lambda: checkpoints.read_config(str(place)), examples)


@counts
@pytest.mark.parametrize('name', ['tokenizer.json', 'tokenizer_config.json', 'generation_config.json'])
def test_tokenizers(teacher, tmp_path, name, examples):
    place = tmp_path / 'model'
    shutil.copytree(teacher, place)

    def read():
        tokenizer = load_tokenizer(str(place))
        tokenizer.decode(tokenizer.encode('How many?'))

    tolerates(place / name, read, examples)


@counts
def test_gguf(tmp_path, examples):
    gguf = pytest.importorskip('gguf')
    path = tmp_path / 'model.gguf'
    writer = gguf.GGUFWriter(str(path), 'llama')
    writer.add_context_length(64)
    writer.add_embedding_length(8)
    writer.add_block_count(1)
    writer.add_head_count(2)
    writer.add_tokenizer_model('gpt2')
    writer.add_token_list(['a', 'b'])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    @settings(max_examples=examples, **PATIENT)
    @given(damaged(path.read_bytes()))
    def check_one(data):
        path.write_bytes(data)
        for read in (checkpoints.read_config, load_tokenizer):
            with refused_or_read():
                read(str(path))

    check_one()


@counts
def test_saved_models(tmp_path, examples):
    model, params = tiny.make_params()
    checkpoints.save_orbax(str(tmp_path / 'saved'), model, params)
    path = tmp_path / 'saved' / orbax_io.MANIFEST
    tolerates(path, lambda: orbax_io.read_config(epath.Path(path.parent)), examples)


@counts
def test_overrides_and_sweeps(teacher, tmp_path, examples):
    experiment = load_config(tiny.write_config(tmp_path / 'config.py', str(teacher)))
    study = make_study([str(teacher), str(teacher)])
    words = st.one_of(st.sampled_from([
        'seed', 'arms', 'arms.plain', 'arms.product_of_experts.defence.gamma', 'decode.slots', 'decode.buckets',
        'teacher', 'proxies.0.exit_layer', 'stop_strings', 'samples', 'dataset.path', 'prompting', 'mesh.model',
        'experiment.decode.slots', 'students.0.name', 'learning_rates', 'policy', 'arms.0.sampling.top_k',
    ]), st.text(max_size=12))  # fmt: skip
    odd = st.sampled_from(['()', '[1,2', '1e999', '{}', 'None', '-1', '(' * 300, '-' * 3000 + '1'])
    given_values = st.one_of(VALUES.map(repr), st.text(max_size=20), odd)

    @settings(max_examples=4 * examples, **PATIENT)
    @given(st.builds('{}={}'.format, words, given_values), st.text(max_size=10))
    def check_one(assignment, other):
        for run in (
            lambda: check(override(experiment, [assignment])),
            lambda: check(sweep(experiment, [assignment])),
            lambda: check_study(override(study, [assignment])),
            lambda: override(experiment, [other]),
        ):
            with refused_or_read():
                run()

    check_one()


@counts
def test_experiments_as_json(teacher, tmp_path, examples):
    """As policies and released cards hold them."""
    experiment = load_config(tiny.write_config(tmp_path / 'config.py', str(teacher)))

    @settings(max_examples=4 * examples, **PATIENT)
    @given(disturbed(json.loads(json.dumps(to_json(experiment)))))
    def check_one(value):
        with refused_or_read():
            found = from_json(value)
            if isinstance(found, type(experiment)):
                check(found)

    check_one()


@counts
def test_configs(teacher, tmp_path, examples):
    path = tmp_path / 'config.py'
    tiny.write_config(path, str(teacher))
    text = path.read_text()
    new_texts = st.sampled_from(['', '(', ')', ',', '=', '0', '\0', 'é'])
    edits = st.tuples(st.integers(0, len(text)), st.integers(0, 40), new_texts)

    @settings(max_examples=examples, **PATIENT)
    @given(edits)
    def check_one(edit):
        at, length, new = edit
        path.write_text(text[:at] + new + text[at + length :])
        with refused_or_read():
            load_config(str(path))

    check_one()


def test_a_refused_checkpoint_leaves_nothing_that_looks_complete(teacher, tmp_path):
    """Converted, exported or saved: what cannot be read whole is not there at all."""
    broken, target = tmp_path / 'broken', tmp_path / 'converted'
    shutil.copytree(teacher, broken)
    whole = (broken / 'model.safetensors').read_bytes()
    (broken / 'model.safetensors').write_bytes(whole[: len(whole) - 9])

    def convert():
        loaded = checkpoints.load(str(broken))
        checkpoints.save_hf(str(target), loaded.model, loaded.params)

    with pytest.raises(AdxError):
        convert()
    assert not target.exists()
    with open_workdir(tmp_path / 'run') as writer:
        writer.append([make_trace(row) for row in range(2)])
    (path,) = (tmp_path / 'run' / 'private' / 'journal').iterdir()
    path.write_bytes(path.read_bytes().replace(b'"text"', b'"test"', 1))
    with pytest.raises(AdxError):
        export.export(str(tmp_path / 'run'), 'chat', 'plain', 'Apache-2.0', 'public')
    assert not (tmp_path / 'run' / 'release').exists()
