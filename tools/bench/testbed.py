"""Measures what the testbed's models can do before anything is distilled, by steps.

    python -m tools.bench.testbed            # appends to tools/bench/results/testbed.json
    python -m tools.bench.testbed --models=testbed-rewriter,testbed-attacker    # those that do as they are told

Three seeds of sampling at the operating temperature. The teacher must reach 90 % on the target level, students 15 to
40 %, so that there is something to steal; see tools/train_testbed.py. Of models of tools/train_instructed.py it counts
the answers that say what they are told to, and as `exactly` those in the very words that were drawn.
"""

from __future__ import annotations

from absl import flags

from adx import checkpoints
from adx.datasets.tokenizing import load_tokenizer
from adx.loading import resolve
from adx.models.tiny import PRESETS
from launch import program
from tools import train_instructed
from tools.bench import figures
from tools.train_testbed import OPERATING, TARGET, examine

TABLE = 'testbed'
COMMAND = 'python -m tools.bench.testbed'
LEVEL = f'tune-{TARGET.steps[1]}'

_MODELS = flags.DEFINE_list('models', list(PRESETS), 'Which of them.')


def goal_of(name: str, level: str) -> str:
    if level != LEVEL or 'judge' in name:
        return ''
    return '>= 0.9' if 'teacher' in name else '0.15 to 0.4'


def main() -> None:
    for name in _MODELS.value:
        source = resolve(name)
        loaded, tokenizer = checkpoints.load(source), load_tokenizer(source)
        given = loaded.model, loaded.params, tokenizer
        if part := train_instructed.PARTS.get(name):
            runs = [train_instructed.examine(*given, part.measured, seed) for seed in range(3)]
        else:
            runs = [examine(*given, OPERATING, seed) for seed in range(3)]
        for level in runs[0]:
            figure = f'{name}_{level}'.replace('-', '_').replace(' ', '_')
            row = figures.append(
                TABLE, figure, [run[level] for run in runs], unit='of the prompts', goal=goal_of(name, level),
                command=COMMAND,
            )  # fmt: skip
            print(f'{name} {level}: {row["value"]:.3f} ({row["low"]:.3f} to {row["high"]:.3f})')


if __name__ == '__main__':
    program.start(main)
