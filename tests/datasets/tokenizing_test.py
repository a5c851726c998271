"""Tokenizers read from Hugging Face directories and GGUF files, against independent implementations."""

from __future__ import annotations

import json
import pathlib
import re

import pytest
import tokenizers
from tokenizers import models, pre_tokenizers, processors, trainers

from adx.datasets.gguf_metadata import read_metadata
from adx.datasets.tokenizing import check_same_vocabulary, load_tokenizer, save_tokenizer
from adx.errors import InputError

TEXT = [
    'Natalia sold 48 clips in April, and then half as many in May: 48/2 = 24.',
    'How many clips did Natalia sell altogether in April and May?\n\n#### 72\n',
    "It's $1,234.50;  they'll   pay 10% more.\t(Really?)\r\n",
    'Élan vital — naïve café ½ ﬁ 数学 мир 😀👩‍👩‍👧 \u2581 end ',
]
CHAT = "{% for m in messages %}{{ '<|user|>' + m['content'] + '<|turn|>' }}{% endfor %}"
SPECIAL = ['<|bos|>', '<|end|>', '<|turn|>', '<|user|>']


def byte_level(special: list[str] = SPECIAL, size: int = 300) -> tokenizers.Tokenizer:
    """A byte-level BPE trained on TEXT; `special` are its first ids."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(TEXT, trainer)
    return backend


def write_directory(path: pathlib.Path, backend: tokenizers.Tokenizer | None = None, **files: dict) -> str:
    """A Hugging Face directory; `files` are its JSON files by stem."""
    path.mkdir(exist_ok=True)
    (backend or byte_level()).save(str(path / 'tokenizer.json'))
    for stem, value in {'tokenizer_config': {'eos_token': '<|end|>'}, **files}.items():
        (path / f'{stem}.json').write_text(json.dumps(value))
    return str(path)


def write_gguf(path: pathlib.Path, **changes) -> str:
    """A GGUF file without tensors whose tokenizer is `byte_level()`; `changes` replace its fields."""
    gguf = pytest.importorskip('gguf')
    model = json.loads(byte_level().to_str())['model']
    tokens = sorted(model['vocab'], key=model['vocab'].get)
    fields = {
        'tokenizer_model': 'gpt2',
        'tokenizer_pre': 'gpt-2',
        'token_list': tokens,
        'token_types': [3 if token in SPECIAL else 1 for token in tokens],
        'token_merges': [' '.join(pair) for pair in model['merges']],
        'bos_token_id': 0,
        'eos_token_id': 1,
        'chat_template': CHAT,
        **changes,
    }
    writer = gguf.GGUFWriter(path, 'llama')
    for name, value in fields.items():
        if value is not None:
            getattr(writer, f'add_{name}')(value)
    writer.add_array('general.languages', ['en', 'fr'])
    writer.add_float32('general.half', 0.5)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return str(path)


# --------------------------------------------------------------------------------------------- directories


def test_text_round_trips_and_special_tokens_are_dropped(tmp_path):
    tokenizer = load_tokenizer(write_directory(tmp_path / 'm'))
    for text in TEXT:
        ids = tokenizer.encode(text)
        assert tokenizer.decode([0, *ids, 1]) == text
        assert max(ids) < tokenizer.size == 300
    assert tokenizer.encode('<|user|>Hi<|turn|>')[::3] == [3, 2]
    assert tokenizer.tokens[:4] == tuple(SPECIAL)


@pytest.mark.parametrize(
    ('files', 'ends'),
    [
        ({}, {1}),
        ({'config': {'eos_token_id': 2}}, {1, 2}),
        ({'config': {'eos_token_id': [2, 3]}}, {1, 2, 3}),
        ({'config': {'text_config': {'eos_token_id': 3}}}, {1, 3}),
        ({'generation_config': {'eos_token_id': [1, 2]}}, {1, 2}),
        ({'tokenizer_config': {}, 'generation_config': {'eos_token_id': 2}}, {2}),
        ({'tokenizer_config': {}, 'special_tokens_map': {'eos_token': {'content': '<|user|>'}}}, {3}),
        ({'tokenizer_config': {'eos_token': '<|end|>', 'chat_template': CHAT}}, {1, 2}),
        ({'tokenizer_config': {'chat_template': [{'name': 'default', 'template': CHAT}]}}, {2}),
        ({'tokenizer_config': {'eos_token': '<|end|>', 'chat_template': CHAT.replace('<|turn|>', '')}}, {1}),
    ],
)
def test_ends_are_gathered_from_every_file_and_the_template(tmp_path, files, ends):
    tokenizer = load_tokenizer(write_directory(tmp_path / 'm', **files))
    assert tokenizer.eos_ids == ends
    assert tokenizer.eos_ids <= tokenizer.control_ids


def test_the_jinja_file_wins_over_the_template_in_the_config(tmp_path):
    config = {'eos_token': '<|end|>', 'chat_template': 'old'}
    source = write_directory(tmp_path / 'm', tokenizer_config=config)
    (tmp_path / 'm' / 'chat_template.jinja').write_text(CHAT)
    assert load_tokenizer(source).template == CHAT


def test_control_ids_are_special_tokens_and_those_the_template_names(tmp_path):
    backend = byte_level()
    # Ids 300 to 302, text-like; white space stands in the template as it does everywhere.
    backend.add_tokens(['<think>', '<unused>', tokenizers.AddedToken('\n', normalized=False)])
    template = CHAT + '\n{% if add_generation_prompt %}<think>{% endif %}'
    config = {'eos_token': '<|end|>', 'chat_template': template}
    tokenizer = load_tokenizer(write_directory(tmp_path / 'm', backend, tokenizer_config=config))
    assert tokenizer.control_ids == {0, 1, 2, 3, 300}
    assert tokenizer.decode(tokenizer.encode('<think>x')) == '<think>x'


@pytest.mark.parametrize('by', ['post-processor', 'flag', 'neither', 'flag off'])
def test_bos_is_added_as_the_files_say(tmp_path, by):
    backend, config = byte_level(), {'eos_token': '<|end|>', 'bos_token': '<|bos|>'}
    if by in ('post-processor', 'flag off'):
        # An end after the text, as some models' post-processors add, must not get into a prompt.
        backend.post_processor = processors.TemplateProcessing(
            single='<|bos|> $A <|end|>', special_tokens=[('<|bos|>', 0), ('<|end|>', 1)]
        )
    config |= {'flag': {'add_bos_token': True}, 'flag off': {'add_bos_token': False}}.get(by, {})
    tokenizer = load_tokenizer(write_directory(tmp_path / 'm', backend, tokenizer_config=config))
    added = by in ('post-processor', 'flag')
    assert tokenizer.bos_id == (0 if added else None)
    bare = tokenizer.encode('Hi')
    assert tokenizer.encode('Hi', add_special=True) == ([0, *bare] if added else bare)
    assert tokenizer.special['bos_token'] == '<|bos|>'


def test_tokens_that_only_the_config_knows_are_added_at_their_ids(tmp_path):
    entries = {'301': {'content': '<b>', 'special': True}, '300': {'content': '<a>'}}
    config = {'eos_token': '<b>', 'added_tokens_decoder': entries}
    tokenizer = load_tokenizer(write_directory(tmp_path / 'm', tokenizer_config=config))
    assert tokenizer.encode('<b><a>') == [301, 300]
    assert tokenizer.eos_ids == {301}


@pytest.mark.parametrize(
    ('files', 'words'),
    [
        ({'tokenizer_config': {}}, 'end-of-sequence ids are []'),
        ({'config': {'eos_token_id': 300}}, 'are [1, 300]; there must be one, and none beyond 299'),
        ({'tokenizer_config': {'eos_token': '</s>'}}, "eos_token '</s>' is not in its vocabulary of 300"),
        ({'tokenizer_config': {'added_tokens_decoder': {'7': {'content': '<|end|>'}}}}, "'<|end|>' at id 7"),
        ({'tokenizer_config': {'eos_token': '<|end|>', 'chat_template': '{{'}}, 'does not parse as jinja2'),
        (
            {'tokenizer_config': {'eos_token': '<|end|>', 'chat_template': 'Hi'}},
            'leaves out what the assistant',
        ),
        ({'config': []}, 'holds a list, not a JSON object'),
        ({'tokenizer': {'model': 'x'}}, 'tokenizer.json cannot be read by tokenizers'),
    ],
)
def test_a_directory_that_cannot_be_used_is_refused_in_one_line(tmp_path, files, words):
    with pytest.raises(InputError) as caught:
        load_tokenizer(write_directory(tmp_path / 'm', **files))
    assert words in str(caught.value)
    assert '\n' not in str(caught.value)


def test_a_missing_or_torn_source_is_refused(tmp_path):
    (tmp_path / 'notes.txt').write_text('x')
    (tmp_path / 'short.gguf').write_bytes(b'GGUF\3\0')
    (tmp_path / 'other.gguf').write_bytes(b'PK' * 50)
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'broken').mkdir()
    (tmp_path / 'broken' / 'tokenizer.json').write_text('{')
    for name, words in [
        ('nowhere', 'does not exist: give a Hugging Face directory or a .gguf file'),
        ('notes.txt', 'is no such thing'),
        ('short.gguf', 'torn GGUF file'),
        ('other.gguf', 'not a GGUF file of version 2 or 3'),
        ('empty', 'tokenizer.json or tokenizer.model is needed'),
        ('broken', 'cannot be read by tokenizers'),
    ]:
        with pytest.raises(InputError, match=re.escape(words)):
            load_tokenizer(str(tmp_path / name))


# --------------------------------------------------------------------------------------- vocabulary, saving


def test_vocabularies_are_the_same_only_if_every_id_is(tmp_path):
    teacher = load_tokenizer(write_directory(tmp_path / 'teacher'))
    check_same_vocabulary(teacher, load_tokenizer(write_directory(tmp_path / 'same')))
    swapped = byte_level(['<|bos|>', '<|end|>', '<|user|>', '<|turn|>'])
    longer = byte_level()
    longer.add_special_tokens(['<extra>'])
    for backend, words in [
        (swapped, "2 ids differ, first (teacher / proxy) 2 ('<|turn|>' / '<|user|>'), 3 ('<|user|>' / "),
        (longer, '(301 tokens) does not share the vocabulary of teacher'),
        (longer, "1 ids differ, first (teacher / proxy) 300 ('' / '<extra>')"),
    ]:
        proxy = load_tokenizer(write_directory(tmp_path / 'proxy', backend))
        with pytest.raises(InputError, match=re.escape(words)):
            check_same_vocabulary(teacher, proxy)


def test_a_saved_tokenizer_loads_as_it_was(tmp_path):
    config = {'eos_token': '<|end|>', 'bos_token': '<|bos|>', 'add_bos_token': True, 'chat_template': CHAT}
    old = load_tokenizer(write_directory(tmp_path / 'm', tokenizer_config=config))
    save_tokenizer(old, str(tmp_path / 'saved'))
    new = load_tokenizer(str(tmp_path / 'saved'))
    check_same_vocabulary(old, new)
    for name in ('eos_ids', 'eos_id', 'bos_id', 'special', 'template', 'control_ids'):
        assert getattr(old, name) == getattr(new, name), name
    assert [old.encode(t, True) for t in TEXT] == [new.encode(t, True) for t in TEXT]


@pytest.mark.oracle
@pytest.mark.parametrize('add_bos', [True, False])
@pytest.mark.parametrize('architecture', [None, 'llama', 'gemma3_text'])
def test_transformers_reads_a_saved_tokenizer(tmp_path, add_bos, architecture):
    transformers = pytest.importorskip('transformers')
    tokenizer = load_tokenizer(write_gguf(tmp_path / 'm.gguf', add_bos_token=add_bos))
    save_tokenizer(tokenizer, str(tmp_path / 'saved'))
    if architecture:
        (tmp_path / 'saved' / 'config.json').write_text(json.dumps({'model_type': architecture}))
    theirs = transformers.AutoTokenizer.from_pretrained(str(tmp_path / 'saved'))
    assert len(theirs) == tokenizer.size
    assert theirs.chat_template == CHAT
    assert theirs.eos_token_id == tokenizer.eos_id == 1
    for text in (*TEXT, '<|user|>Hi<|turn|>'):
        assert theirs(text).input_ids == tokenizer.encode(text, add_special=True)
        assert theirs.decode(tokenizer.encode(text), skip_special_tokens=True) == tokenizer.decode(
            tokenizer.encode(text)
        )
    generation = transformers.GenerationConfig.from_pretrained(str(tmp_path / 'saved'))
    assert generation.eos_token_id == sorted(tokenizer.eos_ids) == [1, 2]


# ----------------------------------------------------------------------------------------------------- GGUF


def test_metadata_is_what_the_gguf_package_reads(tmp_path):
    gguf = pytest.importorskip('gguf')
    path = pathlib.Path(write_gguf(tmp_path / 'm.gguf', token_scores=[0.5] * 300, add_bos_token=True))
    theirs = {name: field.contents() for name, field in gguf.GGUFReader(path).fields.items()}
    ours = read_metadata(path, '')
    assert ours == {name: value for name, value in theirs.items() if not name.startswith('GGUF.')}
    assert ours['general.languages'] == ['en', 'fr']
    for size in range(0, path.stat().st_size, 997):
        torn = tmp_path / 'torn.gguf'
        torn.write_bytes(path.read_bytes()[:size])
        with pytest.raises(InputError, match='torn'):
            read_metadata(torn, '')


def test_a_gguf_tokenizer_is_the_one_it_was_made_of(tmp_path):
    tokenizer = load_tokenizer(write_gguf(tmp_path / 'm.gguf'))
    original = byte_level()
    assert [tokenizer.encode(text) for text in TEXT] == [original.encode(text).ids for text in TEXT]
    assert tokenizer.eos_ids == {1, 2}
    assert tokenizer.bos_id is None
    assert tokenizer.special == {'bos_token': '<|bos|>', 'eos_token': '<|end|>'}


@pytest.mark.parametrize(
    ('changes', 'words'),
    [
        ({'tokenizer_pre': 'tekken'}, "'tekken' is not known; supported: gpt-2, llama-bpe, qwen2, smollm"),
        ({'tokenizer_model': 'rwkv'}, "tokenizer model 'rwkv' is not known; supported: gpt2"),
        ({'token_merges': ['never seen']}, 'its tokenizer cannot be built'),
        ({'token_merges': None}, "cannot be built (KeyError: 'ggml.merges')"),
        ({'bos_token_id': 4000}, 'cannot be built (IndexError'),
        ({'eos_token_id': None, 'chat_template': None}, 'end-of-sequence ids are []'),
    ],
)
def test_a_gguf_that_cannot_be_used_is_refused_in_one_line(tmp_path, changes, words):
    with pytest.raises(InputError) as caught:
        load_tokenizer(write_gguf(tmp_path / 'm.gguf', **changes))
    assert words in str(caught.value)
    assert '\n' not in str(caught.value)


def test_a_gguf_of_pieces_merges_the_best_score_and_keeps_runs_of_spaces(tmp_path):
    tokens = ['<unk>', '<s>', '</s>', 'a', 'b', '\u2581', '  ', '\u2581a', 'ab']
    kinds = [2, 3, 3, 1, 1, 1, 4, 1, 1]
    source = write_gguf(
        tmp_path / 'm.gguf', tokenizer_model='llama', tokenizer_pre='default', token_merges=None,
        token_list=tokens, token_types=kinds, token_scores=[0.0] * 7 + [-2.0, -1.0],
        add_space_prefix=False, bos_token_id=1, eos_token_id=2, chat_template=None,
    )  # fmt: skip
    tokenizer = load_tokenizer(source)
    assert tokenizer.tokens == (*tokens[:6], '\u2581\u2581', *tokens[7:])
    for text, ids in [(' a', [7]), (' ab', [5, 8]), ('b   a', [4, 6, 7]), ('ba', [4, 3])]:
        assert tokenizer.encode(text) == ids
        assert tokenizer.decode(ids) == text
    assert tokenizer.encode('b', add_special=True) == [1, 4]  # pieces open with bos unless the file says not
