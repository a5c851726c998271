"""Tokenizers built from bare vocabularies, against sentencepiece, transformers and textbook BPE."""

from __future__ import annotations

import itertools
import os
import pathlib

import pytest

from adx.datasets import backends
from adx.datasets.gguf_metadata import read_metadata
from adx.datasets.tokenizing import load_tokenizer
from adx.errors import InputError

SAMPLES = pathlib.Path(backends.__file__).parent / 'samples'
TEXT = [
    'Natalia sold 48 clips in April, and then half as many in May: 48/2 = 24.',
    'How many clips did Natalia sell altogether in April and May?\n\n#### 72\n',
    "It's $1,234.50;  they'll   pay 10% more.\t(Really?)\r\n",
    'Élan vital — naïve café ½ ﬁ 数学 мир 😀👩‍👩‍👧 \u2581 end ',
]


# ---------------------------------------------------------------------------------------------- byte level


@pytest.mark.parametrize(
    ('pre', 'words'),
    [
        ('gpt-2', ['12345', ' ab', "'s", '   ', ' x', '\n', '\n', '!!']),
        ('smollm', ['1', '2', '3', '4', '5', ' ab', "'s", '   ', ' x', '\n', '\n', '!!']),
        ('llama-bpe', ['123', '45', ' ab', "'s", '   ', ' x', '\n\n', '!!']),
        ('qwen2', ['1', '2', '3', '4', '5', ' ab', "'s", '   ', ' x', '\n\n', '!!']),
    ],
)
def test_words_are_split_as_the_name_says(pre, words):
    backend = backends.byte_level_backend([backends.Piece('a', 0.0, backends.NORMAL)], [], pre)
    text = "12345 ab's    x\n\n!!"
    assert [text[a:b] for _, (a, b) in backend.pre_tokenizer.pre_tokenize_str(text)] == words


@pytest.mark.oracle
def test_qwen_words_are_split_as_in_transformers():
    transformers = pytest.importorskip('transformers')
    theirs = transformers.Qwen2Tokenizer(vocab={'a': 0, '<|endoftext|>': 1}, merges=[]).backend_tokenizer
    ours = backends.byte_level_backend([backends.Piece('a', 0.0, backends.NORMAL)], [], 'qwen2')
    for text in TEXT:
        text = theirs.normalizer.normalize_str(text)
        assert ours.normalizer.normalize_str(text) == text
        assert ours.pre_tokenizer.pre_tokenize_str(text) == theirs.pre_tokenizer.pre_tokenize_str(text)


# -------------------------------------------------------------------------------------------- sentencepiece


def train_pieces(path: pathlib.Path, **options) -> str:
    spm = pytest.importorskip('sentencepiece')
    defaults = {
        'vocab_size': 400, 'model_type': 'bpe', 'byte_fallback': True, 'add_dummy_prefix': False,
        'normalization_rule_name': 'identity', 'remove_extra_whitespaces': False, 'minloglevel': 2,
        'character_coverage': 0.99,
    }  # fmt: skip
    path.mkdir()
    corpus = TEXT + [line for file in SAMPLES.rglob('*.jsonl') for line in file.open()][:80]
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus), model_prefix=str(path / 'tokenizer'), **{**defaults, **options}
    )
    return str(path)


GEMMA = {'user_defined_symbols': ['\u2581\u2581', '\u2581\u2581\u2581', '\n\n', '<h1>']}
UNSEEN = ['  two   three    four', 'a\n\n\nb <h1>x</h1>', 'zebra ☃ 𓀀 \x00', 'don’t', '', ' ', 'Ünïcödé']


@pytest.mark.parametrize('options', [{'add_dummy_prefix': True}, GEMMA], ids=['llama', 'gemma'])
def test_pieces_encode_as_sentencepiece_does(tmp_path, options):
    spm = pytest.importorskip('sentencepiece')
    source = train_pieces(tmp_path / 'm', **options)
    theirs = spm.SentencePieceProcessor(model_file=str(tmp_path / 'm' / 'tokenizer.model'))
    (tmp_path / 'm' / 'tokenizer_config.json').write_text('{"bos_token": "<s>", "eos_token": "</s>"}')
    tokenizer = load_tokenizer(source)
    assert tokenizer.size == theirs.vocab_size() == 400
    assert tokenizer.tokens == tuple(theirs.id_to_piece(i) for i in range(400))
    assert (tokenizer.bos_id, tokenizer.eos_ids) == (theirs.bos_id(), {theirs.eos_id()})
    for text in (*TEXT[:3], *UNSEEN):
        ids = tokenizer.encode(text)
        assert ids == theirs.encode(text)
        assert tokenizer.decode(ids) == text


@pytest.mark.parametrize(
    'options', [{'model_type': 'unigram', 'vocab_size': 330}, {'normalization_rule_name': 'nmt_nfkc'}]
)
def test_other_kinds_of_sentencepiece_models_are_refused(tmp_path, options):
    with pytest.raises(InputError, match='is not a BPE model that keeps its text as it is'):
        load_tokenizer(train_pieces(tmp_path / 'm', **options))


# ------------------------------------------------------------------------------------------------ SmolLM2


def plain_bpe(words: list[str], ranks: dict[tuple[str, str], int]) -> list[str]:
    """Textbook BPE: in each word, merge the leftmost pair of the lowest rank until none is left."""
    tokens = []
    for word in words:
        parts = list(word)
        while pairs := [(ranks[p], i) for i, p in enumerate(itertools.pairwise(parts)) if p in ranks]:
            i = min(pairs)[1]
            parts[i : i + 2] = [parts[i] + parts[i + 1]]
        tokens += parts
    return tokens


@pytest.mark.slow
def test_smollm2_against_textbook_bpe():
    cache = pathlib.Path(os.environ.get('ADX_CACHE', '~/.cache/adx')).expanduser()
    path = cache / 'smollm2-135m-instruct.gguf'
    if not path.is_file():
        pytest.skip(f'{path} is not there')
    regex = pytest.importorskip('regex')
    tokenizer = load_tokenizer(str(path))
    assert (tokenizer.size, tokenizer.eos_ids, tokenizer.bos_id) == (49152, {2}, None)
    assert tokenizer.tokens[1:3] == ('<|im_start|>', '<|im_end|>')
    assert tokenizer.control_ids == set(range(17))
    merges = read_metadata(path, 'tokenizer.ggml.')['merges']
    ranks = {tuple(merge.split(' ')): i for i, merge in enumerate(merges)}
    word = regex.compile(r"\p{N}|'(?:s|t|re|ve|m|ll|d)| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")
    digit = regex.compile(r'(\p{N})')
    letters = bytes_to_letters()
    texts = TEXT + [line for file in SAMPLES.rglob('*.jsonl') for line in file.read_text().splitlines()]
    for text in texts:
        pieces = [part for part in digit.split(text) if part]
        words = [''.join(letters[b] for b in w.encode()) for part in pieces for w in word.findall(part)]
        ids = tokenizer.encode(text)
        assert [tokenizer.tokens[i] for i in ids] == plain_bpe(words, ranks)
        assert tokenizer.decode(ids) == text


def bytes_to_letters() -> list[str]:
    """The byte-level alphabet: printable Latin-1 bytes stand for themselves, others for U+0100 onwards."""
    others = iter(range(256, 512))
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    return [chr(b) if b in printable else chr(next(others)) for b in range(256)]
