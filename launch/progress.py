"""Progress of a run: a bar on a terminal, JSON lines elsewhere; ids, and text if asked."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

from adx.pipeline import Report
from adx.types import Trace

LINE_SECONDS = 10.0


def left_out_line(left_out: dict[str, Any]) -> str:
    """What `generation.left_out` says, for people."""
    skipped, dropped = left_out['bad_lines_skipped'], left_out['near_duplicates_dropped']
    counts = ', '.join(f'{count} of {split}' for split, count in dropped.items() if count)
    return f'data: {skipped} bad lines skipped; near-duplicates dropped: {counts or "none"}'


class Progress:
    """Called after every trace, and at the start with none. The bar shows traces, tokens/s, occupancy and time left.

    log_text: shows the text of every trace as well.
    """

    def __init__(self, terminal: bool | None = None, log_text: bool = False):
        self.terminal = sys.stderr.isatty() if terminal is None else terminal
        self.log_text = log_text
        self.bar: Any = None
        self.shown = ('', '')
        self.last = 0.0

    def __call__(self, report: Report, trace: Trace | None) -> None:
        if self.terminal:
            self._show(report)
        elif trace is None or time.monotonic() - self.last > LINE_SECONDS:
            self.last = time.monotonic()
            self.log(report, trace.request_id if trace else '')
        if self.log_text and trace:
            self._log_text(trace)

    def _log_text(self, trace: Trace) -> None:
        if self.bar is not None:
            self.bar.write(f'{trace.request_id}\n{trace.text}\n', file=sys.stderr)
        else:
            line = {'event': 'trace', 'request_id': trace.request_id, 'text': trace.text}
            print(json.dumps(line), file=sys.stderr, flush=True)

    def _show(self, report: Report) -> None:
        from tqdm import tqdm

        if self.bar is None:
            told = [left_out_line(report.left_out), *report.without_weights, *report.changes]
            print('\n'.join(told), file=sys.stderr)
            done = report.done_before + report.rejected
            self.bar = tqdm(total=report.total, initial=done, unit='trace', dynamic_ncols=True, file=sys.stderr)
        self.bar.set_postfix_str(
            f'{report.tokens_per_second:.0f} tok/s, occupancy {report.occupancy:.0%}', refresh=False
        )
        self.bar.update(report.done_before + report.rejected + report.done - self.bar.n)

    def steps(self, event: str, name: str, done: int, total: int) -> None:
        """Shows how far a stage without traces of its own is: 'directions' of a proxy, or 'scores' of a kind."""
        if self.terminal:
            from tqdm import tqdm

            if self.shown != (event, name):
                self.close()
                self.shown = event, name
                self.bar = tqdm(total=total, desc=f'{event} {name}', dynamic_ncols=True, file=sys.stderr)
            self.bar.update(done - self.bar.n)
        elif done in (0, total) or time.monotonic() - self.last > LINE_SECONDS:
            self.last = time.monotonic()
            line = {'event': event, 'name': name, 'done': done, 'total': total}
            print(json.dumps(line), file=sys.stderr, flush=True)

    def log(self, report: Report, request_id: str = '') -> None:
        left = report.seconds_left
        told = {'environment_changes': report.changes, 'without_weights': report.without_weights}
        print(
            json.dumps(
                {
                    'event': 'progress',
                    'request_id': request_id,
                    'done': report.done_before + report.done,
                    'rejected': report.rejected,
                    'total': report.total,
                    'tokens_per_second': round(report.tokens_per_second, 1),
                    'occupancy': round(report.occupancy, 3),
                    'seconds_left': None if left is None else round(left),
                    **({} if request_id else report.left_out),
                    **({} if request_id else {name: lines for name, lines in told.items() if lines}),
                }
            ),
            file=sys.stderr,
            flush=True,
        )

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
