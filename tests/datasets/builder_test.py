"""The tensorflow-datasets builder: what is written is read back, without TensorFlow."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from adx.datasets import Gsm8k, Jsonl, Mmlu, builder
from adx.datasets.splits import SPLITS
from adx.errors import InputError

pytest.importorskip('tensorflow_datasets')


@pytest.fixture(scope='module')
def built(tmp_path_factory):
    return builder.build(Gsm8k(), str(tmp_path_factory.mktemp('built')))


def test_a_built_sample_is_the_sample(built):
    source = Gsm8k().source()
    for split, rows in (('train', source.pool.rows), ('test', source.test.rows)):
        assert builder.read(built, split) == tuple(sorted(rows, key=lambda row: row.id))
    for split in SPLITS:
        assert Gsm8k(built).prompts(split) == Gsm8k().prompts(split)


def test_the_files_are_array_record_and_text_is_bytes(built):
    import tensorflow_datasets as tfds

    read = tfds.builder_from_directory(built)
    assert read.info.file_format == tfds.core.FileFormat.ARRAY_RECORD
    example = read.as_data_source(split='test')[0]
    assert set(example) == set(builder.FEATURES)
    assert all(isinstance(value, bytes) for value in example.values())


def test_chats_missing_answers_and_names_survive(tmp_path):
    chat = {'messages': [{'role': 'user', 'content': 'Grüße\n\u2028?'}], 'id': 'a/b', 'customer': 'Ümit'}
    (tmp_path / 'rows.jsonl').write_text('\n'.join(map(json.dumps, [chat, {'question': 'q', 'answer': '5'}])))
    dataset = Jsonl(str(tmp_path / 'rows.jsonl'), name='My-Data')
    path = builder.build(dataset, str(tmp_path / 'built'))
    by_row = {prompt.row: prompt for prompt in dataset.prompts('all')}
    assert {prompt.row: prompt for prompt in Jsonl(path, name='My-Data').prompts('all')} == by_row
    with pytest.raises(InputError, match=r"no split 'test'; it has \['train'\]"):
        builder.read(path, 'test')


def test_subjects_survive(tmp_path):
    record = {'question': 'What is a bone?', 'choices': ['a', 'b'], 'answer': 'A', 'subject': 'anatomy'}
    (tmp_path / 'test.jsonl').write_text(json.dumps(record))
    asked = Mmlu(str(tmp_path)).prompts('test')[0].messages[0]['content']
    built = Mmlu(builder.build(Mmlu(str(tmp_path)), str(tmp_path / 'built')))
    assert built.slices(asked) == Mmlu(str(tmp_path)).slices(asked) == {'subject': 'anatomy'}


def test_a_finished_build_is_not_replaced(built):
    root = built.rsplit('/', 2)[0]
    with pytest.raises(InputError, match=r'gsm8k/1\.2\.0 exists already; remove it or build in'):
        builder.build(Gsm8k(), root)


def test_tensorflow_is_never_imported(built):
    program = f"""
import sys
from adx.datasets import Gsm8k
assert 'tensorflow_datasets' not in sys.modules
assert len(Gsm8k({built!r}).prompts('test')) == 64
assert 'tensorflow' not in sys.modules
"""
    subprocess.run([sys.executable, '-c', program], check=True)


@pytest.mark.parametrize('text', ['', '{', '{"a": 1}', '[]'])
def test_a_damaged_description_is_refused(tmp_path, text):
    (tmp_path / 'dataset_info.json').write_text(text)
    with pytest.raises(InputError, match=r'is no data set \(.*\); restore its files, or build it again'):
        Gsm8k(str(tmp_path)).prompts('train')
