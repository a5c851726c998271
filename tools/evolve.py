"""Searches for an instruction whose rewrites the proxies learn least from.

    python -m tools.evolve --config=configs/C.py --workdir=DIR --of=plain --score=loss --rounds=5

--workdir: of a finished run, or with --seed a study's for that seed, private/seeds/<seed>. The rewriting model is the
config's `rewriter`, else the teacher; new instructions come from it too with --ask, else from a list of clauses. The
best is printed last, and is what the rewriter `Evolved` tells. Exit codes: 0 done, 2 flags or config, 3 input, 4
workdir, 74 storage.
"""

from __future__ import annotations

from absl import flags

from adx import evolving
from adx.workshop import Workshop
from launch import program
from launch.config import load_experiment

_CONFIG = flags.DEFINE_string('config', None, 'The experiment.', required=True, allow_override=True)
_WORKDIR = flags.DEFINE_string('workdir', None, 'Where its traces are.', required=True, allow_override=True)
_SEED = flags.DEFINE_integer('seed', None, 'Of a study: whose workdir it is.', allow_override=True)
_OF = flags.DEFINE_string('of', 'plain', 'Which traces are rewritten.', allow_override=True)
_SCORE = flags.DEFINE_enum('score', 'loss', evolving.SCORES, 'What instructions are scored by.', allow_override=True)
_SAMPLE = flags.DEFINE_integer('sample', 100, 'Traces that each is tried on.', lower_bound=1, allow_override=True)
_ROUNDS = flags.DEFINE_integer('rounds', 5, 'Of proposals.', lower_bound=1, allow_override=True)
_ASK = flags.DEFINE_bool('ask', False, 'Whether the rewriting model proposes.', allow_override=True)


def main() -> None:
    experiment = load_experiment(_CONFIG.value, _SEED.value)
    plan = evolving.Evolution(_OF.value, _SAMPLE.value, _SCORE.value, rounds=_ROUNDS.value)
    shop = Workshop(experiment, _WORKDIR.value)
    propose = evolving.ask(shop.tools.need('write', '--ask')) if _ASK.value else evolving.mutate
    told = lambda one, score: print(f'{score:.4f}  {one}')  # noqa: E731
    best = evolving.evolve(experiment, _WORKDIR.value, plan, propose, told, shop)
    print('\nbetter than doing nothing, the best last:' if best else '\nnothing beats doing nothing')
    for instruction, score in best:
        print(f'{score:.4f}  {instruction}')


if __name__ == '__main__':
    program.start(main)
