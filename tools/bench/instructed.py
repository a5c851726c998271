"""Measures how often the testbed's instructed models do as they are told.

    python -m tools.bench.instructed            # appends to tools/bench/results/instructed.json

Three seeds of sampling at the operating temperature, on tasks drawn anew. An answer counts if it says what it is to
say, in whatever words and order, and under `exactly` if it does so in the very words that were drawn; where an
instruction leaves them open, as a paraphrase does, few do by chance.
"""

from __future__ import annotations

from adx import checkpoints
from adx.datasets.tokenizing import load_tokenizer
from adx.loading import resolve
from launch import program
from tools.bench import figures
from tools.train_instructed import PARTS, examine

TABLE = 'instructed'
COMMAND = 'python -m tools.bench.instructed'


def main() -> None:
    for name, part in PARTS.items():
        source = resolve(name)
        loaded, tokenizer = checkpoints.load(source), load_tokenizer(source)
        runs = [examine(loaded.model, loaded.params, tokenizer, part.measured, seed) for seed in range(3)]
        for task in runs[0]:
            figure = f'{name}_{task}'.replace('-', '_').replace(' ', '_')
            row = figures.append(
                TABLE, figure, [run[task] for run in runs], unit='of the answers', goal='', command=COMMAND
            )
            print(f'{name} {task}: {row["value"]:.3f} ({row["low"]:.3f} to {row["high"]:.3f})')


if __name__ == '__main__':
    program.start(main)
