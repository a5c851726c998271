"""Checkpoints in and out: Hugging Face directories, GGUF files and adx's own by Orbax.

Tensors are streamed: read one, laid out, cast and placed on its devices before the next, so that host memory
holds about one tensor and never a model.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Iterable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from adx import gguf_io, orbax_io, safetensors_io
from adx.errors import InputError, StorageError, malformed
from adx.files import absolute, os_errors
from adx.mesh import Layout
from adx.models import GGUF_MENU, family_of, find_family
from adx.models.names import Tensor, gguf_tensors, hf_tensors, translator_tensors
from adx.models.transformer import Model, Params, TransformerConfig, make_model
from adx.staging import building, stage

DTYPES = ('float32', 'bfloat16', 'float16')
MISFIT = 'its config and its weights are not of the same model'
SHARD_BYTES = 2 * 2**30
WIDE = 2**24
LARGEST = {  # sizes beyond all models, which would take forever to lay out
    'num_layers': 2**10, 'vocab_size': WIDE, 'embed_dim': WIDE, 'mlp_dim': WIDE, 'num_heads': WIDE,
    'num_kv_heads': WIDE, 'head_dim': WIDE, 'max_length': 2**32,
}  # fmt: skip
HASHED_WHOLE = 2**30
SAMPLES, SAMPLE_BYTES = 64, 2**16
Abstract = Mapping[str, jax.ShapeDtypeStruct]
Shapes = Mapping[str, tuple[int, ...]]
WriteTokenizer = Callable[[epath.Path], None]


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A model with its weights.

    identity: names the content of its files (see `hash_files`) and which layers were kept of them.
    directory: where its files are.
    """

    model: Model
    params: Params
    identity: str
    directory: epath.Path


@dataclasses.dataclass(frozen=True)
class _Opened:
    """A checkpoint whose names and shapes are checked and whose weights are not read yet.

    config: of all that is stored.
    fetch: reads those of some abstract arrays that are stored, in their dtypes and onto their shardings.
    """

    config: TransformerConfig
    files: tuple[epath.Path, ...]
    fetch: Callable[[Abstract], Params]


def load(
    source: str,
    *,
    layout: Callable[[TransformerConfig], Layout] | None = None,
    param_dtype: str = 'float32',
    dtype: str = 'float32',
    vocab_rows: int = 0,
    num_layers: int | None = None,
    translator: str | None = None,
) -> Loaded:
    """Loads a model from a Hugging Face directory, a .gguf file or an Orbax directory that adx saved.

    layout: config -> where weights are placed; None puts them on the first device.
    param_dtype: of the weights; norm scales stay float32. dtype: of activations and matmuls.
    vocab_rows: pads the vocabulary to so many rows, with zeros; 0 does not.
    num_layers: an early exit, keeps the first layers only.
    translator: safetensors file of 'translator' [D, D] and 'translator_bias' [D], put before the final norm.

    Raises InputError for anything that does not fit; names and shapes are checked before a weight is placed.
    """
    for name, value in (('param_dtype', param_dtype), ('dtype', dtype)):
        if value not in DTYPES:
            raise InputError(f'{name} = {value!r} is not supported; it must be one of {DTYPES}')
    path = absolute(source)
    parts = [_open(path)]
    config = early_exit(parts[0].config, num_layers, source)
    config = dataclasses.replace(config, vocab_rows=vocab_rows, dtype=dtype)
    if translator is not None:
        config = dataclasses.replace(config, translator=True)
        parts.append(_open_translator(absolute(translator), config))
    model = make_model(config)
    abstract = abstract_params(model, layout(model.config) if layout else None, param_dtype)
    params: Params = {}
    for part in parts:  # a translator from a file of its own replaces one that was saved with the model
        params |= part.fetch(abstract)
    identity = _identity([file for part in parts for file in part.files], num_layers)
    return Loaded(model, params, identity, path if path.is_dir() else path.parent)


def load_translator(source: str, config: TransformerConfig, layout: Layout, param_dtype: str) -> Params:
    """The translator alone, of an early exit of this config. Raises InputError as `load` does."""
    abstract = abstract_params(make_model(config), layout, param_dtype)
    return _open_translator(absolute(source), config).fetch(abstract)


def identify(source: str, num_layers: int | None = None, translator: str | None = None) -> str:
    """The `identity` of what `load` would give. Reads no weight."""
    found = list(_open(absolute(source)).files)
    if translator is not None:
        found += safetensors_io.open_files([absolute(translator)]).files
    return _identity(found, num_layers)


def _identity(found: Iterable[epath.Path], num_layers: int | None) -> str:
    return hash_files(found, '' if num_layers is None else f'the first {num_layers} layers')


def read_config(source: str) -> TransformerConfig:
    """The config of a checkpoint, its names and shapes checked. Reads no weight."""
    return _open(absolute(source)).config


def _open(path: epath.Path) -> _Opened:
    """Opens whichever kind of checkpoint is at `path`."""
    if (path / orbax_io.MANIFEST).exists():
        return _open_orbax(path)
    path = stage(path)
    if path.suffix == '.gguf' and path.is_file():
        return _open_gguf(path)
    if path.is_dir():
        return _open_hf(path)
    raise InputError(
        f'{path} {"is no checkpoint" if path.exists() else "does not exist"}; '
        'give a Hugging Face directory (config.json), a .gguf file or an Orbax directory (adx.json)'
    )


def _open_hf(path: epath.Path) -> _Opened:
    config = safetensors_io.read_json(path / 'config.json')
    family = find_family(str(config.get('model_type')))
    model = _model(path, lambda: family.from_hf(config))
    weights = safetensors_io.open_directory(path, family.hf_name)
    tied = {'lm_head.weight'} if model.config.tied else set()  # some files repeat the embedding
    return _open_weights(path, model, hf_tensors(family, model), weights, tied)


def _model(path: epath.Path, read: Callable[[], TransformerConfig]) -> Model:
    """The model of a file's config. Raises InputError where no model has such values."""
    with malformed(f'{path}: its config is of no model', 'copy it anew from where the weights came from'):
        config = read()
        for name, most in LARGEST.items():
            size = getattr(config, name)
            if type(size) is not int or not 1 <= size <= most:
                raise ValueError(f'{name} is {size!r}; it must be 1 to {most}')
        return make_model(config)


def _open_gguf(path: epath.Path) -> _Opened:
    with malformed(f'{path} is no GGUF file of a model', 'download it again'):
        architecture, config, weights = gguf_io.open_gguf(path)
    family = find_family(architecture, GGUF_MENU)
    model = _model(path, lambda: family.from_hf(config))
    return _open_weights(path, model, gguf_tensors(family, model), weights, {gguf_io.ROPE_FACTORS})


def _open_weights(
    path: epath.Path,
    model: Model,
    tensors: Mapping[str, Tensor],
    weights: safetensors_io.Weights,
    ignored: set[str],
) -> _Opened:
    expected = {tensor.name: tensor.shape for tensor in tensors.values()}
    found = {name: shape for name, shape in weights.shapes.items() if name not in ignored}
    check_shapes(path, expected, found)
    return _Opened(model.config, weights.files, functools.partial(_stream, weights, tensors))


def _open_translator(path: epath.Path, config: TransformerConfig) -> _Opened:
    weights = safetensors_io.open_files([path])
    return _open_weights(path, make_model(config), translator_tensors(make_model(config)), weights, set())


def _open_orbax(path: epath.Path) -> _Opened:
    model = _model(path, lambda: orbax_io.read_config(path))
    check_shapes(path, model.shapes, orbax_io.read_shapes(path))

    def fetch(abstract: Abstract) -> Params:
        return orbax_io.restore(path, {name: leaf for name, leaf in abstract.items() if name in model.shapes})

    return _Opened(model.config, orbax_io.list_files(path), fetch)


def check_shapes(path: epath.Path, expected: Shapes, found: Shapes) -> None:
    """Raises InputError unless `found` has the names and shapes of `expected` and no others."""
    for problem, names in (
        ('lacks', [name for name in expected if name not in found]),
        ('has unexpected', [name for name in found if name not in expected]),
    ):
        if names:
            more = f' and {len(names) - 3} more' if len(names) > 3 else ''
            raise InputError(f'{path} {problem} tensors {names[:3]}{more}; {MISFIT}')
    for name, shape in expected.items():
        if tuple(found[name]) != shape:
            raise InputError(
                f'{path}: tensor {name} has shape {tuple(found[name])} and its config says {shape}; {MISFIT}'
            )


def early_exit(config: TransformerConfig, num_layers: int | None, source: str) -> TransformerConfig:
    """The config of the first layers only; None keeps all. Raises InputError if there are not so many."""
    if num_layers is None:
        return config
    if not 1 <= num_layers <= config.num_layers:
        raise InputError(f'num_layers = {num_layers} of {source} is not allowed: 1 to {config.num_layers}')
    return dataclasses.replace(config, num_layers=num_layers)


def abstract_params(model: Model, placed: Layout | None, param_dtype: str) -> dict[str, jax.ShapeDtypeStruct]:
    """Path -> shape, dtype and sharding of every weight."""
    first = None if placed else jax.sharding.SingleDeviceSharding(jax.local_devices()[0])

    def leaf(path: str) -> jax.ShapeDtypeStruct:
        dtype = jnp.dtype('float32' if path.endswith('.scale') else param_dtype)
        sharding = placed.sharding(model.axes[path]) if placed else first
        return jax.ShapeDtypeStruct(model.shapes[path], dtype, sharding=sharding)

    return {path: leaf(path) for path in model.shapes}


def _stream(weights: safetensors_io.Weights, tensors: Mapping[str, Tensor], abstract: Abstract) -> Params:
    """Reads and places one tensor after the other."""
    return {
        path: _place(tensors[path].from_file(weights.read(tensors[path].name)), leaf)
        for path, leaf in abstract.items()
        if path in tensors
    }


def _place(x: np.ndarray, leaf: jax.ShapeDtypeStruct) -> jax.Array:
    """x on the sharding of `leaf`, cast piece by piece; rows that x does not have are zeros."""

    def piece(index: tuple[slice, ...] | None) -> np.ndarray:
        assert index is not None  # the type allows for scalars
        part = x[index]
        sizes = [len(range(*cut.indices(size))) for cut, size in zip(index, leaf.shape, strict=True)]
        missing = [(0, size - have) for size, have in zip(sizes, part.shape, strict=True)]
        return np.pad(np.ascontiguousarray(part, leaf.dtype), missing)

    return jax.make_array_from_callback(leaf.shape, leaf.sharding, piece)


def hash_files(files: Iterable[epath.Path], note: str = '') -> str:
    """A content hash of some files and a note, 64 hexadecimal digits; their directory does not enter.

    Files of one name count in the order that they are given in.

    Up to 1 GiB in all it is the SHA-256 of every byte. Beyond, of each file's size and of 64 evenly spaced
    blocks of 64 KiB, first and last included: enough to tell checkpoints apart, no proof against forgery.
    """
    sizes = {path: path.stat().length for path in sorted(files, key=lambda path: path.name)}
    whole = sum(sizes.values()) <= HASHED_WHOLE
    digest = hashlib.sha256(note.encode())
    for path, size in sizes.items():
        digest.update(f'\n{path.name} {size}\n'.encode())
        with path.open('rb') as file:
            if whole or size <= SAMPLES * SAMPLE_BYTES:
                while block := file.read(2**20):
                    digest.update(block)
            else:
                for i in range(SAMPLES):
                    file.seek(i * (size - SAMPLE_BYTES) // (SAMPLES - 1))
                    digest.update(file.read(SAMPLE_BYTES))
    return digest.hexdigest()


def save_orbax(
    directory: str, model: Model, params: Params, write_tokenizer: WriteTokenizer | None = None
) -> None:
    """Saves a model so that `load` restores it on any mesh. All processes call it.

    write_tokenizer: puts the tokenizer's files into a directory. Raises InputError unless it is new or empty,
    StorageError if it cannot be written.
    """
    path = absolute(directory)
    if path.exists() and any(path.iterdir()):
        raise InputError(f'{path} exists and is not empty; name a new directory')
    orbax_io.write_arrays(path, params)
    if jax.process_index() == 0:
        with os_errors(StorageError, f'{path} was not written'):
            if write_tokenizer is not None:
                with building(path) as folder:
                    write_tokenizer(folder)
            orbax_io.write_manifest(path, model.config)


def save_hf(
    directory: str,
    model: Model,
    params: Params,
    write_tokenizer: WriteTokenizer | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Writes a Hugging Face directory that transformers loads, whole or not at all.

    The family is the one whose config.json can say model.config. Vocabulary padding is left out, weights keep
    their dtype, files hold at most shard_bytes.
    write_tokenizer: puts the tokenizer's files into a directory (see safetensors_io.copy_tokenizer).

    Raises InputError if the directory is not empty or if no family computes this model, StorageError if it
    cannot be written.
    """
    family = family_of(model.config)
    tensors = {tensor.name: (path, tensor) for path, tensor in hf_tensors(family, model).items()}
    sizes = {name: params[path].nbytes for name, (path, _) in tensors.items()}

    def fetch(name: str) -> np.ndarray:
        path, tensor = tensors[name]
        return tensor.to_file(np.asarray(params[path])[tuple(slice(0, n) for n in tensor.our_shape)])

    def fill(partial: epath.Path) -> None:
        config = family.to_hf(model.config) | {'torch_dtype': params['embed'].dtype.name}
        safetensors_io.write_json(partial / 'config.json', config)
        if write_tokenizer is not None:
            write_tokenizer(partial)
        safetensors_io.write_shards(partial, sizes, fetch, shard_bytes)

    safetensors_io.write_directory(absolute(directory), fill)
