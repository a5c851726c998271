"""Tokenizers: text to ids and back, which ids end a sequence, and how a sequence opens."""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib
import re
from collections.abc import Iterable, Mapping

import tokenizers
from tokenizers import processors

from adx.datasets.backends import SPACE
from adx.datasets.templates import closing
from adx.datasets.tokenizer_files import Description, read_directory, read_gguf
from adx.errors import InputError, malformed

BYTE = re.compile('<0x[0-9A-F]{2}>')  # how vocabularies with byte fallback spell a byte


@dataclasses.dataclass(frozen=True, eq=False)
class Tokenizer:
    """One vocabulary with its conventions. Make one with `load_tokenizer`.

    eos_ids: every id that ends a sequence, at least one.
    bos_id: opens every sequence, once; None where sequences open with their first word.
    special: 'bos_token', 'eos_token', ... to the token's text, the names that templates use.
    template: the jinja2 chat template, None for a base model.
    source: where it was loaded from, for messages.
    """

    backend: tokenizers.Tokenizer
    eos_ids: frozenset[int]
    bos_id: int | None
    special: Mapping[str, str]
    template: str | None
    source: str

    @functools.cached_property
    def tokens(self) -> tuple[str, ...]:
        """Id -> token, as the vocabulary spells it; '' for an id that has none."""
        ids = self.backend.get_vocab(with_added_tokens=True)
        tokens = [''] * (max(ids.values()) + 1)
        for token, token_id in ids.items():
            tokens[token_id] = token
        return tuple(tokens)

    @functools.cached_property
    def token_bytes(self) -> tuple[bytes, ...]:
        """Id -> the bytes that it adds to a decoded text; b'' for special tokens and ids that have none."""
        added = self.backend.get_added_tokens_decoder()
        byte_level = b'ByteLevel' in self.backend.decoder.__getstate__()
        spelt = [_spelt(token, byte_level) for token in self.tokens]
        for i, token in added.items():
            spelt[i] = b'' if token.special else token.content.encode()
        return tuple(spelt)

    @functools.cached_property
    def named_bytes(self) -> tuple[bytes, ...]:
        """As token_bytes, but special tokens by their names: what structure is recognised in."""
        added = self.backend.get_added_tokens_decoder()
        return tuple(added[i].content.encode() if i in added else spelt for i, spelt in enumerate(self.token_bytes))

    @property
    def size(self) -> int:
        """How many ids there are: 0 to size - 1. A model's vocabulary rows beyond are padding."""
        return len(self.tokens)

    @property
    def eos_id(self) -> int:
        """The end that is written where there can be only one: eos_token, else the lowest of eos_ids."""
        name = self.special.get('eos_token')
        return min(self.eos_ids) if name is None else _id_of(self.backend, name)

    @functools.cached_property
    def control_ids(self) -> frozenset[int]:
        """Ids of structure, not of words: ends, bos, special tokens, added tokens that the template names.

        White space stands in any template and names nothing, also where it is an added token, as Gemma's newlines.
        """
        added, template = self.backend.get_added_tokens_decoder(), self.template or ''
        named = {i for i, one in added.items() if one.special or (one.content.strip() and one.content in template)}
        return self.eos_ids | named | ({self.bos_id} if self.bos_id is not None else set())

    @functools.cached_property
    def added_ids(self) -> frozenset[int]:
        """Ids beside the words that the vocabulary was trained on: added tokens, and those of control_ids."""
        return self.control_ids | frozenset(self.backend.get_added_tokens_decoder())

    def encode(self, text: str, add_special: bool = False) -> list[int]:
        """Token ids of `text`. Special tokens written out in it become their ids.

        add_special: opens with bos_id where the model has one. An end is never added.
        """
        return self.backend.encode(text, add_special_tokens=add_special).ids

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`, special tokens dropped. Bytes that are not UTF-8 become U+FFFD."""
        return self.backend.decode(list(ids), skip_special_tokens=True)


def load_tokenizer(source: str) -> Tokenizer:
    """Loads the tokenizer of a Hugging Face directory or of a GGUF file.

    Raises InputError when there is none, when its files do not parse or contradict each other, and when it
    is of a kind that is not supported.
    """
    path = pathlib.Path(source).expanduser()
    with malformed(f'{path}: its tokenizer cannot be built', 'copy its files anew from where the weights came from'):
        if path.is_dir():
            return _make_tokenizer(read_directory(path), source)
        if path.is_file() and path.suffix == '.gguf':
            return _make_tokenizer(read_gguf(path), source)
    what = 'is no such thing' if path.exists() else 'does not exist'
    raise InputError(f'tokenizer source {source!r} {what}: give a Hugging Face directory or a .gguf file')


def _make_tokenizer(description: Description, source: str) -> Tokenizer:
    backend, special, template = description.backend, description.special, description.template
    for name in ('bos_token', 'eos_token'):
        if name in special and backend.token_to_id(special[name]) is None:
            raise InputError(
                f'{source}: {name} {special[name]!r} is not in its vocabulary of {backend.get_vocab_size()} '
                'tokens; the tokenizer files must come from one model'
            )
    special = {name: text for name, text in special.items() if backend.token_to_id(text) is not None}
    _mark_special(backend, special.values())
    bos_id = _find_bos(description)
    _set_bos(backend, bos_id)
    ends = set(description.eos_ids)
    if 'eos_token' in special:
        ends.add(_id_of(backend, special['eos_token']))
    if template is not None:
        ends |= _end_of_turn(backend, template, special)
    tokenizer = Tokenizer(backend, frozenset(ends), bos_id, special, template, source)
    if not ends or not all(0 <= i < tokenizer.size for i in ends):
        raise InputError(
            f'{source}: end-of-sequence ids are {sorted(ends)}; there must be one, and none beyond '
            f'{tokenizer.size - 1}; correct eos_token_id in config.json or generation_config.json'
        )
    return tokenizer


def _id_of(backend: tokenizers.Tokenizer, token: str) -> int:
    """The id of a token that is known to be in the vocabulary."""
    token_id = backend.token_to_id(token)
    assert token_id is not None
    return token_id


def _mark_special(backend: tokenizers.Tokenizer, tokens: Iterable[str]) -> None:
    """Makes tokens special, so that decoding drops them, where only the settings use them so."""
    known = {token.content for token in backend.get_added_tokens_decoder().values() if token.special}
    backend.add_special_tokens(sorted(set(tokens) - known))


def _find_bos(description: Description) -> int | None:
    """The id that opens every sequence: as the settings say, else what the post-processor puts first."""
    backend, bos = description.backend, description.special.get('bos_token')
    if description.add_bos is not None:
        return backend.token_to_id(bos) if description.add_bos and bos else None
    bare, full = (backend.encode('a', add_special_tokens=add).ids for add in (False, True))
    return full[0] if len(full) > len(bare) and full[1 : 1 + len(bare)] == bare else None


def _set_bos(backend: tokenizers.Tokenizer, bos_id: int | None) -> None:
    """Makes `add_special_tokens` add the bos token and nothing else."""
    if bos_id is None:
        backend.post_processor = processors.ByteLevel(trim_offsets=False)
        return
    bos = backend.id_to_token(bos_id)
    backend.post_processor = processors.TemplateProcessing(
        single=[bos, '$A'], pair=[bos, '$A', bos, '$B:1'], special_tokens=[(bos, bos_id)]
    )


def _end_of_turn(backend: tokenizers.Tokenizer, template: str, special: Mapping[str, str]) -> set[int]:
    """The added token that the template writes right after the assistant's words; empty if it writes text."""
    end = closing(template, special, date='2000-01-01')  # any day: only the end of the text is read
    first = backend.encode(end.strip(), add_special_tokens=False).ids[:1]
    added = backend.get_added_tokens_decoder()
    ends = {i for i in first if i in added}
    _mark_special(backend, (added[i].content for i in ends))
    return ends


def _spelt(token: str, byte_level: bool) -> bytes:
    """The bytes of a token: its characters stand for bytes, or it is text with marked spaces, or one byte's number."""
    if byte_level and all(char in _BYTES for char in token):
        return bytes(_BYTES[char] for char in token)
    if not byte_level and BYTE.fullmatch(token):
        return bytes([int(token[3:5], 16)])
    return token.replace(SPACE, ' ').encode()


def _byte_characters() -> dict[str, int]:
    """Character -> byte in byte-level vocabularies: printable Latin-1 is itself, the others follow from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = sorted(set(range(256)) - set(printable))
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}


_BYTES = _byte_characters()


def check_same_vocabulary(teacher: Tokenizer, proxy: Tokenizer) -> None:
    """Raises InputError unless every id is the same token to both: distributions are combined by id."""
    size = max(teacher.size, proxy.size)
    theirs, ours = (t.tokens + ('',) * (size - t.size) for t in (teacher, proxy))
    differing = [i for i in range(size) if theirs[i] != ours[i]]
    if differing:
        first = ', '.join(f'{i} ({theirs[i]!r} / {ours[i]!r})' for i in differing[:5])
        raise InputError(
            f'proxy {proxy.source} ({proxy.size} tokens) does not share the vocabulary of teacher '
            f'{teacher.source} ({teacher.size} tokens): {len(differing)} ids differ, first (teacher / proxy) '
            f'{first}; take a proxy that was trained with the tokenizer of the teacher'
        )


def save_tokenizer(tokenizer: Tokenizer, directory: str) -> None:
    """Writes a Hugging Face directory that transformers' AutoTokenizer and `load_tokenizer` read.

    Files: tokenizer.json, tokenizer_config.json, generation_config.json; chat_template.jinja if it has one.
    """
    path = pathlib.Path(directory)
    path.mkdir(parents=True, exist_ok=True)
    tokenizer.backend.save(str(path / 'tokenizer.json'))
    config = {
        'tokenizer_class': 'PreTrainedTokenizerFast',
        'add_bos_token': tokenizer.bos_id is not None,
        'clean_up_tokenization_spaces': False,
        **tokenizer.special,
        'eos_token': tokenizer.tokens[tokenizer.eos_id],
    }
    generation = {'eos_token_id': sorted(tokenizer.eos_ids)} | (
        {} if tokenizer.bos_id is None else {'bos_token_id': tokenizer.bos_id}
    )
    for name, value in (('tokenizer_config.json', config), ('generation_config.json', generation)):
        (path / name).write_text(json.dumps(value, indent=2, ensure_ascii=False) + '\n', encoding='utf-8')
    if tokenizer.template is not None:
        (path / 'chat_template.jinja').write_text(tokenizer.template, encoding='utf-8')
