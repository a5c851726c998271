"""Hugging Face directories: config.json and safetensors, read one tensor at a time."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from etils import epath

from adx.errors import InputError, StorageError
from adx.files import is_object_store, os_errors
from adx.staging import building
from adx.types import is_name

TOKEN_IDS = ('bos_token_id', 'eos_token_id', 'pad_token_id')
SINGLE, INDEX = 'model.safetensors', 'model.safetensors.index.json'
TOKENIZER_FILES = (
    'tokenizer.json', 'tokenizer.model', 'tokenizer_config.json', 'special_tokens_map.json',
    'added_tokens.json', 'vocab.json', 'merges.txt', 'chat_template.jinja', 'chat_template.json',
    'generation_config.json',
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Weights:
    """Named tensors of a checkpoint that are read one at a time. `files`: all that they are made of."""

    shapes: Mapping[str, tuple[int, ...]]
    read: Callable[[str], np.ndarray]
    files: tuple[epath.Path, ...]


def read_json(path: epath.Path) -> dict[str, Any]:
    """A JSON object from a file; InputError where there is none."""
    try:
        value = json.loads(path.read_text('utf-8'))
    except FileNotFoundError as error:
        raise InputError(f'{path} is missing; copy it from where the checkpoint came from') from error
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f'{path} is not readable as JSON ({error}); download it again') from error
    if not isinstance(value, dict):
        raise InputError(f'{path} holds a JSON {type(value).__name__}; it must be an object')
    return value


def open_directory(directory: epath.Path, rename: Callable[[str], str | None]) -> Weights:
    """The tensors of a Hugging Face directory under the names that `rename` gives them, None dropping one."""
    if (directory / SINGLE).is_file():
        files = [directory / SINGLE]
    elif (directory / INDEX).is_file():
        files = [directory / name for name in _file_names(directory / INDEX)]
    else:
        raise InputError(f'{directory} has neither {SINGLE} nor {INDEX}; other weight files are not read')
    opened = open_files(files, rename)
    meta = (directory / 'config.json', *([directory / INDEX] if len(files) > 1 else []))
    return dataclasses.replace(opened, files=(*meta, *opened.files))


def _file_names(index: epath.Path) -> list[str]:
    """The files of an index, which stand beside it. Raises InputError where it names others."""
    weight_map = read_json(index).get('weight_map')
    names = list(weight_map.values()) if isinstance(weight_map, dict) else []
    wrong = [name for name in names if not isinstance(name, str) or not is_name(name)]
    if wrong or not names:
        raise InputError(
            f'{index} names {wrong[0] if wrong else "no files"!r}; weight_map must give a file beside it a tensor'
        )
    return sorted(set(names))


def open_files(files: list[epath.Path], rename: Callable[[str], str | None] = lambda name: name) -> Weights:
    """The tensors of some safetensors files. Reads their headers only."""
    places: dict[str, tuple[epath.Path, str]] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for file in files:
        with _opened(file) as tensors:
            for stored in tensors.keys():  # noqa: SIM118 (not a dict)
                if (name := rename(stored)) is not None:
                    places[name] = (file, stored)
                    shapes[name] = tuple(tensors.get_slice(stored).get_shape())

    def read(name: str) -> np.ndarray:
        file, stored = places[name]
        with _opened(file) as tensors:
            return tensors.get_tensor(stored)

    return Weights(shapes, read, tuple(files))


def _opened(file: epath.Path) -> Any:
    import safetensors

    try:
        return safetensors.safe_open(file, 'numpy')
    except FileNotFoundError as error:
        raise InputError(f'{file} is missing; copy it from where the checkpoint came from') from error
    except (OSError, safetensors.SafetensorError) as error:
        raise InputError(f'{file} is not a whole safetensors file ({error}); download it again') from error


def copy_tokenizer(source: epath.Path, target: epath.Path) -> None:
    """Copies what a Hugging Face directory holds about its tokenizer and its end-of-sequence ids."""
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
    if not (target / 'generation_config.json').is_file():
        config = read_json(source / 'config.json')
        ids = {key: value for key, value in config.items() if key in TOKEN_IDS}
        write_json(target / 'generation_config.json', ids)


def write_json(path: epath.Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + '\n', 'utf-8')


def write_shards(
    directory: epath.Path, sizes: Mapping[str, int], fetch: Callable[[str], np.ndarray], limit: int
) -> None:
    """Writes tensors in files of at most `limit` bytes, one tensor at least; memory holds one file at a time.

    sizes: name -> bytes, in the order to write; fetch: name -> values.
    """
    import safetensors.numpy

    groups = list(_groups(sizes, limit))
    names = {
        i: SINGLE if len(groups) == 1 else f'model-{i + 1:05d}-of-{len(groups):05d}.safetensors'
        for i in range(len(groups))
    }
    for i, group in enumerate(groups):
        tensors = {name: np.ascontiguousarray(fetch(name)) for name in group}
        try:
            safetensors.numpy.save_file(tensors, directory / names[i], metadata={'format': 'pt'})
        except safetensors.SafetensorError as error:
            raise StorageError(f'writing {names[i]}: {error}; check the storage and run again') from error
    if len(groups) > 1:
        weight_map = {name: names[i] for i, group in enumerate(groups) for name in group}
        metadata = {'total_size': sum(sizes.values())}
        write_json(directory / INDEX, {'metadata': metadata, 'weight_map': weight_map})


def _groups(sizes: Mapping[str, int], limit: int) -> Iterator[list[str]]:
    group: list[str] = []
    used = 0
    for name, size in sizes.items():
        if group and used + size > limit:
            yield group
            group, used = [], 0
        group.append(name)
        used += size
    yield group


def write_directory(directory: epath.Path, fill: Callable[[epath.Path], None]) -> None:
    """Creates `directory` with what `fill` writes into it: whole or not at all.

    Raises InputError if there is something already, StorageError if it cannot be written.
    """
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise InputError(f'{directory} exists and is not empty; name a new directory')
    if is_object_store(directory):
        with os_errors(StorageError, f'writing {directory}'), building(directory, last='config.json') as folder:
            fill(folder)
        return
    partial = directory.with_name(directory.name + '.partial')
    with os_errors(StorageError, f'writing {directory}'):
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            fill(partial)
            os.replace(partial, directory)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
