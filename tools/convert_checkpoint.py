r"""Converts a Hugging Face directory, .gguf or Orbax directory to Orbax or Hugging Face.

    python -m tools.convert_checkpoint --source=model.gguf --to=hf --out=model_hf
    python -m tools.convert_checkpoint --source=model_hf --to=orbax --out=gs://bucket/model \
        --param_dtype=bfloat16

The tokenizer goes along where the source has one. Exit codes: 0 done, 2 flags, 3 input, 74 storage.
"""

from __future__ import annotations

from absl import flags, logging

from adx import checkpoints
from adx.datasets.tokenizing import load_tokenizer, save_tokenizer
from adx.safetensors_io import copy_tokenizer
from adx.staging import stage
from launch import program

SOURCE = flags.DEFINE_string('source', None, 'What to convert.', required=True, allow_override=True)
OUT = flags.DEFINE_string('out', None, 'A directory that is new or empty.', required=True, allow_override=True)
TO = flags.DEFINE_enum('to', 'orbax', ['orbax', 'hf'], 'The kind to write.')
PARAM_DTYPE = flags.DEFINE_enum('param_dtype', 'float32', list(checkpoints.DTYPES), 'Norms stay float32.')


def tokenizer_writer(source: str) -> checkpoints.WriteTokenizer | None:
    """Copies the tokenizer's files beside a directory's weights, or rebuilds them from a GGUF file."""
    path = stage(source).expanduser()
    if path.suffix == '.gguf':
        return lambda target: save_tokenizer(load_tokenizer(str(path)), str(target))
    if (path / 'tokenizer.json').exists() or (path / 'tokenizer.model').exists():
        return lambda target: copy_tokenizer(path, target)
    return None


def convert(source: str, out: str, to: str, param_dtype: str) -> None:
    """Loads `source` and writes it to `out`. Raises AdxError."""
    loaded = checkpoints.load(source, param_dtype=param_dtype)
    save = {'orbax': checkpoints.save_orbax, 'hf': checkpoints.save_hf}[to]
    save(out, loaded.model, loaded.params, tokenizer_writer(source))


def main() -> None:
    logging.set_verbosity(logging.WARNING)  # Orbax narrates
    convert(SOURCE.value, OUT.value, TO.value, PARAM_DTYPE.value)
    print(OUT.value)


if __name__ == '__main__':
    program.start(main)
