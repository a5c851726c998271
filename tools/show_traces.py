"""Shows a workdir's traces side by side, marking the tokens that the defence changed.

    python -m tools.show_traces --workdir=/data/run --limit=3 --html=/data/run/private/traces.html

Exit codes: 0 done, 2 flags, 3 input, 4 workdir, 74 storage.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import shutil
import sys
from collections.abc import Iterable, Iterator

from absl import flags
from etils import epath

from adx import experiment, files, grading, loading, rewrites_io, spans, view
from adx.errors import StorageError, WorkdirError
from adx.storage import Workdir
from adx.types import RequestId, Trace
from launch import program

WORKDIR = flags.DEFINE_string(
    'workdir', None, 'The workdir of a run, local or gs://.', required=True, allow_override=True
)
LIMIT = flags.DEFINE_integer('limit', 3, 'How many prompts the terminal shows; 0 shows all.', lower_bound=0)
HTML = flags.DEFINE_string('html', '', 'Writes a page here as well. It is PRIVATE: it maps the defence.')
HTML_LIMIT = flags.DEFINE_integer('html_limit', 100, 'How many prompts the page shows; 0 shows all.', lower_bound=0)
WIDTH = flags.DEFINE_integer('width', 0, 'Cells a line; 0 takes the width of the terminal.', lower_bound=0)
TITLE = 'Traces side by side'
MIN_WIDTH = 20


def first_prompts(traces: Iterable[Trace], limit: int) -> list[Trace]:
    """The traces of the first `limit` prompts (0: of all), undefended ones first: they stand on the left."""
    kept: dict[str, list[Trace]] = {}
    for trace in traces:
        name = RequestId.parse(trace.request_id).noise_name
        if name in kept or not limit or len(kept) < limit:
            kept.setdefault(name, []).append(trace)
    chosen = [trace for traces in kept.values() for trace in traces]
    return sorted(chosen, key=lambda trace: trace.defence.get('type') != 'undefended')


def with_settings(workdir: Workdir) -> Iterator[Trace]:
    """The traces; what a selection chose also as a setting of its name, beside candidate 0 of the prompt; rewrites."""
    names: dict[str, list[str]] = {}
    for name in workdir.selections():
        for choice in workdir.selection(name):
            names.setdefault(choice['request_id'], []).append(name)
    for trace in workdir.traces():
        yield trace
        for name in names.get(trace.request_id, ()):
            id_ = RequestId.parse(trace.request_id)._replace(sample=0, setting=name)
            yield dataclasses.replace(trace, request_id=str(id_))
    for name in rewrites_io.names(workdir):
        yield from rewrites_io.rewritten(workdir, name)


def load_groups(workdir: Workdir, limit: int) -> list[view.Group]:
    """Reads what is finished. Raises AdxError where the workdir or the teacher's tokenizer cannot be read."""
    chosen = first_prompts(with_settings(workdir), limit)
    if not chosen:
        raise WorkdirError(f'{workdir.path} has no finished trace yet; run its experiment first')
    stored = workdir.experiment['experiment']
    teacher, dataset = (experiment.from_json(stored[name]) for name in ('teacher', 'dataset'))
    tokenizer = loading.read_tokenizer(teacher.source)
    decode = functools.partial(tokenizer.backend.decode, skip_special_tokens=False)  # ends too
    return view.compare(chosen, functools.partial(spans.token_pieces, decode), dataset.grade, grading.extract)


def main() -> None:
    colour = sys.stdout.isatty() and 'NO_COLOR' not in os.environ
    width = max(WIDTH.value or shutil.get_terminal_size().columns, MIN_WIDTH)
    limits = [LIMIT.value, *([HTML_LIMIT.value] if HTML.value else [])]
    loaded = load_groups(Workdir(WORKDIR.value), max(limits) if all(limits) else 0)
    groups = loaded[: LIMIT.value or None]
    print(view.terminal(groups, width, colour) + view.summary(groups, width, colour), end='')
    if HTML.value:
        shown = loaded[: HTML_LIMIT.value or None]
        page = view.html(shown, TITLE).encode()
        with files.os_errors(StorageError, f'{HTML.value} was not written'):
            files.write_private(epath.Path(HTML.value), page)
        count = f'{len(shown)} prompt{"s" * (len(shown) != 1)}'
        print(f'{HTML.value} is written, with {count}; it is private', file=sys.stderr)


if __name__ == '__main__':
    program.start(main)
