"""The release: the only traces that may leave a workdir, by an allow-list.

A row of a release has the fields of FIELDS and no other. Token ids, per-token marks, strengths, seeds and
the name of the setting stay private: they are the defence's own map. For the same reason a release holds
one setting, and a workdir one release: the plain and the defended trace of one question side by side show
every defended token. A setting is an arm, a selection among the samples of one (see selecting.py), or what a rewrite
made of either (see rewriting.py).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

from etils import epath

from adx import files, locks, rewrites_io
from adx.errors import ConfigError, InputError, StorageError, extra
from adx.journal import FORMAT_VERSION, read_object, to_json
from adx.selection import CONTROLS
from adx.storage import Workdir, digest, trace_hash
from adx.types import RequestId, Trace

FIELDS = {
    'id': 'dataset/split/row/sample',
    'messages': 'the conversation: role and content of each message, the last one the model\'s',
    'text': 'the final text as served',
    'licence': 'the licence of this trace',
    'policy': 'the policy notice that goes with it',
}
CARD = 'README.md'
DISCLOSURES = "'public', 'contract' or 'none: <reason>'"
Row = dict[str, Any]


def export(
    workdir: epath.PathLike, out_format: str, setting: str, licence: str, disclosure: str = ''
) -> epath.Path:
    """Writes the finished traces of one setting to `<workdir>/release` and returns that path, replacing it.

    out_format: 'chat' (Hugging Face chat JSONL), 'parquet' or 'tfds' (a tensorflow-datasets directory).
    licence, disclosure: one line each, printed on the card as given; disclosure is 'public', 'contract' or
    'none: <reason>' and may be '' for traces without a defence. May be called while the run is live: the
    card says what is missing. The release appears whole; exporting the same traces in the same way again
    changes nothing.
    Raises ConfigError for a bad argument, InputError if there is no trace of the setting, StorageError.
    """
    source = Workdir(workdir)
    _check(out_format, licence, disclosure)
    _ = source.experiment  # refuses what is no workdir
    rows, trace_hashes, defended = _collect(source, setting)
    if defended != 'no' and not disclosure:
        raise ConfigError(f'disclosure is empty though {setting!r} is defended; it must be {DISCLOSURES}')
    rows = [row | {'licence': licence, 'policy': policy(licence, defended)} for row in rows]
    card = make_card(out_format, licence, _facts(source, setting, trace_hashes, defended, disclosure))
    fingerprint = hashlib.sha256(f'{digest(trace_hashes)}\n{card}'.encode()).hexdigest()
    with (
        files.os_errors(StorageError, f'{source.release} was not written, the journals are safe'),
        locks.exclusive(source.private / 'locks' / 'export'),
    ):
        if not _is_exported(source, fingerprint):
            with _staging(source) as folder:
                FORMATS[out_format](rows, folder, licence)
                (folder / CARD).write_text(card)
                _publish(source, folder)
            recipe = {'out_format': out_format, 'setting': setting, 'licence': licence, 'disclosure': disclosure}
            record = {'format_version': FORMAT_VERSION, 'fingerprint': fingerprint, 'recipe': recipe}
            files.write_private(source.private / 'export.json', to_json(record).encode())
    return source.release


def policy(licence: str, defended: str) -> str:
    """The notice that goes with every trace; it does not say which traces of a release are defended."""
    notice = f'Licence: {licence}. It governs whether other models may be trained on this trace.'
    if defended != 'no':
        was = 'was' if defended == 'yes' else 'may have been'
        notice += (
            f' It {was} sampled under an anti-distillation defence,'
            ' so it is no evidence of how the model reasons without one.'
        )
    return notice


def _check(out_format: str, licence: str, disclosure: str) -> None:
    if out_format not in FORMATS:
        raise ConfigError(f'format {out_format!r} is unknown; it must be one of {", ".join(FORMATS)}')
    for name, value in (('licence', licence), ('disclosure', disclosure)):
        if value != value.strip() or not value.isprintable():
            raise ConfigError(f'{name} {value!r} is not allowed; it must be one line, trimmed')
    if not licence:
        raise ConfigError("licence is empty; name that of the traces, e.g. 'cc-by-nc-4.0' or 'proprietary'")
    reasoned = disclosure.startswith('none:') and disclosure.removeprefix('none:').strip()
    if disclosure not in ('', 'public', 'contract') and not reasoned:
        raise ConfigError(f'disclosure {disclosure!r} is not allowed; it must be {DISCLOSURES}')


def _collect(source: Workdir, setting: str) -> tuple[list[Row], dict[str, str], str]:
    """The rows of a setting by id, the hash of each trace, and whether they are defended: 'yes', 'no' or 'in part'."""
    rows, trace_hashes, types = [], {}, set()
    settings = {*source.selections(), *rewrites_io.names(source)}
    choices = source.selection(setting) if setting in source.selections() else []
    chosen = {choice['request_id'] for choice in choices}
    traces = rewrites_io.rewritten(source, setting) if setting in rewrites_io.names(source) else source.traces()
    for trace in traces:
        request_id = RequestId.parse(trace.request_id)
        settings.add(request_id.setting)
        if trace.request_id in chosen or request_id.setting == setting:
            rows.append(_row(request_id, trace))
            trace_hashes[trace.request_id] = trace_hash(trace)
            types.add(trace.defence.get('type'))
    if not rows:
        found = ', '.join(sorted(settings)) or 'no finished trace at all'
        raise InputError(f'{source.path} has no finished trace of setting {setting!r}; it has: {found}')
    if chosen - set(trace_hashes):
        raise InputError(f'{len(chosen - set(trace_hashes))} traces of selection {setting!r} are gone; select again')
    if any(choice['how'] not in CONTROLS for choice in choices) or 'undefended' not in types:
        defended = 'yes'
    else:
        defended = 'no' if types == {'undefended'} else 'in part'
    return sorted(rows, key=lambda row: row['id']), trace_hashes, defended


def _row(request_id: RequestId, trace: Trace) -> Row:
    turns = [{'role': turn['role'], 'content': turn['content']} for turn in trace.messages]
    turns.append({'role': 'assistant', 'content': trace.text})
    return {'id': request_id.noise_name, 'messages': turns, 'text': trace.text}


def _facts(
    source: Workdir, setting: str, trace_hashes: dict[str, str], defended: str, disclosure: str
) -> dict[str, str]:
    """What the card says about the traces, in its order."""
    # A selection leaves one trace of the samples that its arm has of each prompt.
    arm = RequestId.parse(next(iter(trace_hashes))).setting
    share = 1 if arm == setting else source.experiment['experiment']['samples']
    parts = 5 if share == 1 else 3  # a selection goes without a prompt that has any sample rejected
    gone = {id_[:parts] for id_ in map(RequestId.parse, source.rejected()) if id_.setting == arm}
    rejected = len(gone - {RequestId.parse(id_)[:parts] for id_ in trace_hashes})
    total = (source.totals() or {}).get(arm)
    total = total if total is None else total // share
    if total is None:
        missing = 'not known: the run has not said how many it will make'
    else:
        missing = f'{total - len(trace_hashes)} of {total}'
        missing += ' (the run was not complete when this was written)' if total > len(trace_hashes) else ''
    return {
        'Traces': str(len(trace_hashes)),
        'Missing': missing,
        'Rejected': f'{rejected} of the missing could not be made',
        'Defended': 'no' if defended == 'no' else f'{defended}: sampled under an anti-distillation defence',
        'Disclosure': disclosure or 'none needed, the traces are not defended',
    }


READING = {
    'chat': "datasets.load_dataset('json', data_files='traces.jsonl')",
    'parquet': "datasets.load_dataset('parquet', data_files='traces.parquet')",
    'tfds': "tfds.builder_from_directory('traces/1.0.0').as_data_source(split='train')",
}


def make_card(out_format: str, licence: str, facts: dict[str, str]) -> str:
    """The data set card: Markdown under the YAML header that Hugging Face reads."""
    lines = ['---', f'license: {json.dumps(licence)}', 'pretty_name: Reasoning traces', '---']
    lines += ['# Reasoning traces', '', '| | |', '|---|---|', f'| Licence | {licence} |']
    lines += [f'| {name} | {value} |' for name, value in facts.items()]
    lines += ['', 'Read it with', '', f'    {READING[out_format]}', '', 'Fields:', '']
    lines += [f'- `{name}`: {meaning}' for name, meaning in FIELDS.items()]
    lines += ['', 'A release without this card is incomplete.', '']
    return '\n'.join(lines)


def _write_chat(rows: list[Row], folder: epath.Path, licence: str) -> None:
    with open(folder / 'traces.jsonl', 'w', encoding='utf-8') as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + '\n' for row in rows)


def _write_parquet(rows: list[Row], folder: epath.Path, licence: str) -> None:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise ConfigError(f"format 'parquet' needs pyarrow; {extra('parquet')}") from error
    turn = pa.struct({'role': pa.string(), 'content': pa.string()})
    columns = {name: pa.list_(turn) if name == 'messages' else pa.string() for name in FIELDS}
    pq.write_table(pa.Table.from_pylist(rows, pa.schema(columns)), os.fspath(folder / 'traces.parquet'))


def _write_tfds(rows: list[Row], folder: epath.Path, licence: str) -> None:
    """Writes the records and the metadata of a builder. A builder of its own would shuffle the rows.

    As tensorflow-datasets has it, a sequence of messages reads back as {'role': [...], 'content': [...]}.
    """
    import tensorflow_datasets as tfds
    from array_record.python.array_record_module import ArrayRecordWriter

    version, text = '1.0.0', tfds.features.Text()
    target = folder / 'traces' / version
    target.mkdir(parents=True)
    turns = tfds.features.Sequence({'role': text, 'content': text})
    features = tfds.features.FeaturesDict({name: turns if name == 'messages' else text for name in FIELDS})
    template = tfds.core.ShardedFileTemplate(
        dataset_name='traces', data_dir=target, split='train', filetype_suffix='array_record'
    )
    records = [features.serialize_example(features.encode_example(row)) for row in rows]
    writer = ArrayRecordWriter(os.fspath(template.sharded_filepaths(1)[0]), 'group_size:1')
    for record in records:
        writer.write(record)
    writer.close()
    identity = tfds.core.dataset_info.DatasetIdentity(
        name='traces', version=tfds.core.Version(version), data_dir=os.fspath(target), module_name=__name__
    )
    info = tfds.core.DatasetInfo(builder=identity, features=features, license=licence)
    info.set_file_format('array_record')
    split = tfds.core.SplitInfo(
        name='train',
        shard_lengths=[len(records)],
        num_bytes=sum(map(len, records)),
        filename_template=template,
    )
    info.set_splits(tfds.core.splits.SplitDict([split]))
    info.write_to_directory(os.fspath(target))


FORMATS: dict[str, Callable[[list[Row], epath.Path, str], None]] = {
    'chat': _write_chat,
    'parquet': _write_parquet,
    'tfds': _write_tfds,
}


def _is_exported(source: Workdir, fingerprint: str) -> bool:
    try:
        record = read_object(source.private / 'export.json', (), InputError, 'export again')
    except InputError:  # none yet, or damaged
        return False
    return record.get('fingerprint') == fingerprint and (source.release / CARD).exists()


@contextlib.contextmanager
def _staging(source: Workdir) -> Iterator[epath.Path]:
    """An empty local folder to build in: on the workdir's own file system, so that it can be renamed."""
    if files.is_object_store(source.path):
        with tempfile.TemporaryDirectory() as folder:
            yield epath.Path(folder)
        return
    folder = source.private / 'export.new'
    shutil.rmtree(folder, ignore_errors=True)  # of an export that was killed
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _publish(source: Workdir, folder: epath.Path) -> None:
    """Replaces the release by a built folder. In between there is none; there is never a part of one."""
    if files.is_object_store(source.path):
        files.remove(source.release / CARD)
        files.remove_directory(source.release)
        files.upload_directory(folder, source.release, last=CARD)  # the card says complete
        return
    paths = [epath.Path(root) / name for root, _, names in os.walk(folder) for name in names]
    for path in [*paths, *{path.parent for path in paths}]:
        files.fsync_path(path)
    old = source.private / 'export.old'
    shutil.rmtree(old, ignore_errors=True)
    if source.release.exists():
        os.rename(source.release, old)
    os.rename(folder, source.release)
    files.fsync_path(source.path)
    shutil.rmtree(old, ignore_errors=True)
