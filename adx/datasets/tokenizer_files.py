"""Reads what a Hugging Face directory or a GGUF file says about its tokenizer."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import tokenizers

from adx.datasets.backends import NORMAL, SPACE, Piece, byte_level_backend, piece_backend
from adx.datasets.gguf_metadata import read_metadata
from adx.errors import InputError, extra


class Description(NamedTuple):
    """A tokenizer as its files describe it.

    add_bos: whether every sequence opens with the bos token; None leaves it to the backend's post-processor.
    special: 'bos_token', 'eos_token', ... to the token's text. eos_ids: ids that the files call an end.
    """

    backend: tokenizers.Tokenizer
    add_bos: bool | None
    special: dict[str, str]
    eos_ids: frozenset[int]
    template: str | None


def read_directory(directory: pathlib.Path) -> Description:
    """Reads a Hugging Face directory: tokenizer.json (else tokenizer.model) and the settings beside it."""
    config = _json(directory / 'tokenizer_config.json')
    if (directory / 'tokenizer.json').is_file():
        backend = _read_backend(directory / 'tokenizer.json')
    elif (directory / 'tokenizer.model').is_file():
        backend = _read_sentencepiece(directory / 'tokenizer.model')
        config.setdefault('add_bos_token', True)
    else:
        raise InputError(
            f'{directory} has no tokenizer: tokenizer.json or tokenizer.model is needed; copy it from where '
            'the weights came from'
        )
    _add_missing_tokens(backend, config.get('added_tokens_decoder') or {}, directory)
    special = _special_names({**_json(directory / 'special_tokens_map.json'), **config})
    model, generation = _json(directory / 'config.json'), _json(directory / 'generation_config.json')
    settings = (model, model.get('text_config') or {}, generation)
    eos_ids = frozenset(i for setting in settings for i in _as_ids(setting.get('eos_token_id')))
    return Description(backend, config.get('add_bos_token'), special, eos_ids, _template(directory, config))


def read_gguf(path: pathlib.Path) -> Description:
    """Rebuilds the tokenizer from the metadata of a GGUF file; reads no weights."""
    metadata = read_metadata(path, 'tokenizer.')
    try:
        backend = _gguf_backend(metadata)
        roles = {'bos': 'bos', 'eos': 'eos', 'unknown': 'unk', 'padding': 'pad'}
        ids = {f'{role}_token': metadata.get(f'ggml.{name}_token_id') for name, role in roles.items()}
        special = {role: metadata['ggml.tokens'][i] for role, i in ids.items() if i is not None}
    except InputError as error:
        raise InputError(f'{path}: {error}') from error
    except Exception as error:  # the tokenizers library raises bare Exceptions
        reason = f'{type(error).__name__}: {error}'
        raise InputError(f'{path}: its tokenizer cannot be built ({reason}); download it again') from error
    by_default = metadata['ggml.model'] == 'llama' or metadata.get('ggml.pre') == 'llama-bpe'
    ends = [metadata.get(f'ggml.{name}_token_id') for name in ('eos', 'eot', 'eom')]
    eos_ids = frozenset(i for i in ends if i is not None)
    add_bos = metadata.get('ggml.add_bos_token', by_default)
    return Description(backend, add_bos, special, eos_ids, metadata.get('chat_template'))


def _gguf_backend(metadata: Mapping[str, Any]) -> tokenizers.Tokenizer:
    kind, tokens = metadata.get('ggml.model'), metadata.get('ggml.tokens', [])
    kinds = metadata.get('ggml.token_type', [NORMAL] * len(tokens))
    if kind == 'gpt2':
        pieces = [Piece(text, 0.0, kind) for text, kind in zip(tokens, kinds, strict=True)]
        return byte_level_backend(pieces, metadata['ggml.merges'], metadata.get('ggml.pre', 'gpt-2'))
    if kind == 'llama':
        # GGUF spells the spaces of user-defined pieces out; sentencepiece and all other pieces do not.
        texts = [text.replace(' ', SPACE) for text in tokens]
        fields = zip(texts, metadata['ggml.scores'], kinds, strict=True)
        add_prefix = metadata.get('ggml.add_space_prefix', True)
        return piece_backend([Piece(*field) for field in fields], add_prefix)
    raise InputError(
        f'tokenizer model {kind!r} is not known; supported: gpt2 (byte-level BPE), llama (sentencepiece); '
        'load the model from its Hugging Face directory'
    )


def _json(path: pathlib.Path) -> dict[str, Any]:
    """The object in `path`; empty when there is no such file."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding='utf-8'))
    except (ValueError, RecursionError) as error:
        raise InputError(f'{path} is not JSON: {error}; download it again') from error
    if not isinstance(value, dict):
        raise InputError(f'{path} holds a {type(value).__name__}, not a JSON object; download it again')
    return value


def _read_backend(path: pathlib.Path) -> tokenizers.Tokenizer:
    try:
        return tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the tokenizers library raises bare Exceptions
        reason = ' '.join(str(error).split())
        raise InputError(f'{path} cannot be read by tokenizers {tokenizers.__version__}: {reason}') from error


def _read_sentencepiece(path: pathlib.Path) -> tokenizers.Tokenizer:
    try:
        from sentencepiece import sentencepiece_model_pb2
    except ImportError as error:
        raise InputError(f'{path} needs sentencepiece; {extra("gguf")}, or add a tokenizer.json') from error
    proto = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]  # made at run time
    try:
        proto.ParseFromString(path.read_bytes())
    except Exception as error:  # protobuf's DecodeError, whose module depends on its version
        raise InputError(f'{path} is not a sentencepiece model: {error}; download it again') from error
    normalizer = proto.normalizer_spec
    rewrites = bool(normalizer.precompiled_charsmap) or normalizer.remove_extra_whitespaces
    if proto.trainer_spec.model_type != proto.trainer_spec.BPE or rewrites:
        raise InputError(
            f'{path} is not a BPE model that keeps its text as it is (the kind of Llama, Mistral and Gemma), '
            'the only kind supported; convert it to a tokenizer.json with transformers'
        )
    return piece_backend([Piece(p.piece, p.score, p.type) for p in proto.pieces], normalizer.add_dummy_prefix)


def _add_missing_tokens(
    backend: tokenizers.Tokenizer, entries: Mapping[str, Mapping[str, Any]], directory: pathlib.Path
) -> None:
    """Adds the tokens that only tokenizer_config.json knows, at the ids it states."""
    flags = ('special', 'normalized', 'lstrip', 'rstrip', 'single_word')
    for token_id, entry in sorted(entries.items(), key=lambda item: int(item[0])):
        text = entry['content']
        if backend.token_to_id(text) is None:
            backend.add_tokens(
                [tokenizers.AddedToken(text, **{name: entry.get(name, False) for name in flags})]
            )
        if backend.token_to_id(text) != int(token_id):
            raise InputError(
                f'{directory}: tokenizer_config.json puts {text!r} at id {token_id}, the tokenizer at '
                f'{backend.token_to_id(text)}; the two files must come from one model'
            )


def _special_names(config: Mapping[str, Any]) -> dict[str, str]:
    """'bos_token' and the like to the token's text; entries are text or {'content': text}."""
    names = ('bos_token', 'eos_token', 'unk_token', 'sep_token', 'pad_token', 'cls_token', 'mask_token')
    values = {name: config.get(name) for name in names}
    texts = {
        name: value['content'] if isinstance(value, Mapping) else value for name, value in values.items()
    }
    return {name: text for name, text in texts.items() if text}


def _as_ids(value: int | Iterable[int] | None) -> tuple[int, ...]:
    if value is None:
        return ()
    return (value,) if isinstance(value, int) else tuple(value)


def _template(directory: pathlib.Path, config: Mapping[str, Any]) -> str | None:
    """chat_template.jinja, else the one in tokenizer_config.json (of several, the one named 'default')."""
    path = directory / 'chat_template.jinja'
    if path.is_file():
        return path.read_text(encoding='utf-8')
    value = config.get('chat_template')
    if isinstance(value, list):
        return {entry['name']: entry['template'] for entry in value}.get('default')
    return value
