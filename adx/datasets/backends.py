"""`tokenizers` backends from bare vocabularies: byte-level and sentencepiece BPE."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers

from adx.errors import InputError

# What a piece is; GGUF and sentencepiece number these alike.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6

SPACE = '\u2581'  # how sentencepiece writes a space inside a piece

# The words of GPT-4: contractions, letters with one mark before them, numbers, marks, line ends, spaces.
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{numbers}"
    r'| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+'
)


class Piece(NamedTuple):
    """One id of a vocabulary: its text, its merge priority (higher merges first) and its kind."""

    text: str
    score: float
    kind: int


def _split_words(numbers: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(_WORDS.format(numbers=numbers)), behavior='isolated'),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])  # fmt: skip


def _pre_tokenizer(name: str) -> pre_tokenizers.PreTokenizer:
    """The word splitter that GGUF calls `name`. Raises InputError for one that is not known."""
    if name == 'gpt-2':
        return pre_tokenizers.ByteLevel(add_prefix_space=False)
    if name == 'smollm':
        digits = pre_tokenizers.Digits(individual_digits=True)
        return pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    if name == 'llama-bpe':
        return _split_words(r'\p{N}{1,3}')
    if name == 'qwen2':
        return _split_words(r'\p{N}')
    raise InputError(
        f'pre-tokenizer {name!r} is not known; supported: gpt-2, llama-bpe, qwen2, smollm; '
        'load the model from its Hugging Face directory, whose tokenizer.json says how words are split'
    )


def byte_level_backend(pieces: Sequence[Piece], merges: Sequence[str], pre: str) -> tokenizers.Tokenizer:
    """Byte-level BPE whose `merges` ('left right') come in order of priority, words split as `pre` says."""
    splitter = _pre_tokenizer(pre)
    vocabulary = {piece.text: i for i, piece in enumerate(pieces)}
    pairs = [(left, right) for left, _, right in (merge.partition(' ') for merge in merges)]
    # Llama 3 keeps a word that is a token whole, even where no sequence of merges builds it.
    backend = tokenizers.Tokenizer(models.BPE(vocabulary, pairs, ignore_merges=pre == 'llama-bpe'))
    if pre == 'qwen2':
        backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = splitter
    backend.decoder = decoders.ByteLevel()
    _add_tokens(backend, pieces)
    return backend


def piece_backend(pieces: Sequence[Piece], add_prefix: bool) -> tokenizers.Tokenizer:
    """Sentencepiece BPE: the pair of neighbours that forms the piece of highest score merges first.

    add_prefix: text gets a leading space before it is split (and loses one when it is decoded).
    """
    vocabulary = {piece.text: i for i, piece in enumerate(pieces)}
    unknown = next((piece.text for piece in pieces if piece.kind == UNKNOWN), None)
    has_bytes = any(piece.kind == BYTE for piece in pieces)
    model = models.BPE(vocabulary, _merges(pieces), unk_token=unknown, fuse_unk=True, byte_fallback=has_bytes)
    backend = tokenizers.Tokenizer(model)
    spaces = normalizers.Replace(' ', SPACE)
    backend.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), spaces]) if add_prefix else spaces
    steps = [decoders.Replace(SPACE, ' '), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence(steps + ([decoders.Strip(' ', 1, 0)] if add_prefix else []))
    _add_tokens(backend, pieces)
    return backend


def _merges(pieces: Sequence[Piece]) -> list[tuple[str, str]]:
    """Every way to form a normal piece from two others, best score first."""
    normal = {piece.text for piece in pieces if piece.kind == NORMAL}
    merges: list[tuple[str, str]] = []
    for piece in sorted((p for p in pieces if p.kind == NORMAL), key=lambda p: -p.score):
        splits = ((piece.text[:i], piece.text[i:]) for i in range(1, len(piece.text)))
        merges.extend(pair for pair in splits if pair[0] in normal and pair[1] in normal)
    return merges


def _add_tokens(backend: tokenizers.Tokenizer, pieces: Sequence[Piece]) -> None:
    """Marks control pieces as special, and user-defined ones as never split.

    A user-defined piece that holds spaces is matched after they were replaced, the others in the raw text.
    """
    special = [piece.text for piece in pieces if piece.kind in (CONTROL, UNKNOWN)]
    whole = [piece.text for piece in pieces if piece.kind == USER_DEFINED]
    backend.add_special_tokens(
        [tokenizers.AddedToken(text, special=True, normalized=False) for text in special]
    )
    backend.add_tokens([tokenizers.AddedToken(text, normalized=SPACE in text) for text in whole])
