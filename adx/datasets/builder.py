"""The question/answer datasets as tensorflow-datasets, written and read without TensorFlow.

The file format is always ArrayRecord: the default one needs TensorFlow to be finalised. Rows are shuffled by
hash when they are written, so the id is a feature. Text comes back as bytes; a missing answer is b''.
"""

from __future__ import annotations

import contextlib
import functools
import json
import re
import tempfile
from collections.abc import Iterator
from typing import Any

from etils import epath

from adx.datasets.prompting import Questions
from adx.datasets.rows import Row, Rows, Source, asked
from adx.errors import InputError

FEATURES = ('id', 'question', 'answer', 'messages', 'customer', 'category')
VERSION = '1.2.0'


def build(dataset: Questions, directory: str) -> str:
    """Writes the pool as 'train' and official test rows as 'test' below `directory`; returns the data's path.

    A dataset takes that path as its `path`. Raises InputError where it exists already: a finished build is
    never replaced in silence.
    """
    source = dataset.source()
    both = {'train': source.pool.rows, 'test': source.test.rows}
    splits = {split: rows for split, rows in both.items() if rows}
    name = re.sub(r'[^a-z0-9]+', '_', dataset.name.lower())  # file names of a split are parsed at '-'
    builder = _builder_class()(splits=splits, dataset_name=name, data_dir=str(directory))
    if epath.Path(builder.data_dir).exists():
        raise InputError(f'{builder.data_dir} exists already; remove it or build in another directory')
    builder.download_and_prepare(file_format='array_record')
    return str(builder.data_dir)


def read(directory: str, split: str) -> tuple[Row, ...]:
    """The rows of 'train' or 'test' of a built directory, by id. InputError if it has no such split."""
    builder = _builder(directory)
    if split not in builder.info.splits:
        raise InputError(f'{directory} has no split {split!r}; it has {sorted(builder.info.splits)}')
    with _explained(directory):
        rows = [_row(example) for example in builder.as_data_source(split=split)]
    return tuple(sorted(rows, key=lambda row: row.id))


def read_source(directory: str) -> Source:
    """Everything that `build` wrote to `directory`. Raises InputError where it is damaged, StorageError where a store
    fails.
    """
    place = epath.Path(directory)
    if '://' in str(directory):  # ArrayRecord reads local files only
        with tempfile.TemporaryDirectory() as folder:
            for path in asked(place, lambda: list(place.iterdir())):
                asked(path, functools.partial(path.copy, epath.Path(folder) / path.name, overwrite=True))
            return read_source(folder)
    present = _builder(directory).info.splits
    found = {split: Rows(read(directory, split)) for split in ('train', 'test') if split in present}
    return Source(found.get('train', Rows()), found.get('test', Rows()))


def _builder(directory: str) -> Any:
    """What reads a built directory. Raises InputError where its description is damaged."""
    import tensorflow_datasets as tfds

    with _explained(directory):
        builder = tfds.builder_from_directory(str(directory))
        if builder.info.file_format is not tfds.core.FileFormat.ARRAY_RECORD:
            raise ValueError(f'it is in the format {builder.info.file_format}; array_record is read')
        return builder


@contextlib.contextmanager
def _explained(directory: str) -> Iterator[None]:
    """Turns whatever tfds, protobuf and ArrayRecord raise, of no kind of their own, into an InputError."""
    try:
        yield
    except Exception as error:
        reason = ' '.join(str(error).split())[:200] or type(error).__name__
        raise InputError(f'{directory} is no data set ({reason}); restore its files, or build it again') from error


def _example(row: Row) -> dict[str, str]:
    messages = json.dumps(row.messages) if row.messages else ''
    fields = {'id': row.id, 'question': row.question, 'answer': row.answer or '', 'customer': row.customer}
    return fields | {'messages': messages, 'category': row.category}


def _row(example: dict[str, Any]) -> Row:
    text = {feature: example.get(feature, b'').decode() for feature in FEATURES}  # older builds lack the last two
    messages = tuple(json.loads(text['messages'])) if text['messages'] else ()
    of = text['id'], text['customer'], text['category']
    return Row(text['question'], text['answer'] or None, messages, *of)


def _builder_class() -> Any:
    """Defined in a function, because its base class is an import of half a second."""
    import tensorflow_datasets as tfds

    class QuestionAnswer(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
        """Questions with reference answers."""

        VERSION = tfds.core.Version(VERSION)
        url_infos = None  # nothing is downloaded, so there are no checksums to look for beside this file

        def __init__(self, *, splits: dict[str, tuple[Row, ...]], dataset_name: str, **kwargs: Any):
            self.name = dataset_name
            self.splits = splits
            super().__init__(**kwargs)

        def _info(self) -> Any:
            features = tfds.features.FeaturesDict({name: tfds.features.Text() for name in FEATURES})
            return tfds.core.DatasetInfo(builder=self, description=self.__doc__, features=features)

        def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[str, dict[str, str]]]]:
            return {split: self._generate_examples(rows) for split, rows in self.splits.items()}

        def _generate_examples(self, rows: tuple[Row, ...]) -> Iterator[tuple[str, dict[str, str]]]:
            for row in rows:
                yield row.id, _example(row)

    return QuestionAnswer
