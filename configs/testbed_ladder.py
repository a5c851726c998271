"""The arithmetic testbed: what a thief must pay more, in data (D), queries (Q) and steps.

Claim:   none.
Command: python -m launch.run --config=configs/testbed_ladder.py --workdir=/data/ladder \
             --stages=generate,distil,report
Cost:    --dry_run prints how many students it trains, and `distil` how many minutes that takes.
Result:  not run: no defence won whose price there is to ask for.
"""

import dataclasses

from adx.attacks import Attack, BestOfK
from adx.datasets import Arithmetic
from adx.study import Study
from configs import testbed_screen

WINNER = 'cross_soft'
UNIT = 2000  # traces, as many as in the screen
RUNGS = [(1.0, 1), *((data, k) for data in (0.25, 0.5, 1.0, 2.0, 4.0) for k in (1, 2, 4) if (data, k) != (1.0, 1))]


def rung(data: float, k: int) -> Attack:
    """`data` units of prompts, the first right one of k answers to each, and steps in proportion from one unit on."""
    chosen = (BestOfK(k),) if k > 1 else ()
    longer = max(data, 1.0)
    return Attack(f'd{data:g}_q{data * k:g}', chosen, longer=longer, prompts=round(data * UNIT), samples=k)


def study() -> Study:
    screen = testbed_screen.study()
    arms = tuple(arm for arm in screen.experiment.arms if arm.name in ('plain', WINNER))
    data = Arithmetic(size=round(UNIT * max(data for data, _ in RUNGS)))
    experiment = dataclasses.replace(screen.experiment, dataset=data, limit=0, samples=4, arms=arms)
    passive, rungs = Attack('sft', prompts=UNIT, samples=1), tuple(rung(*each) for each in RUNGS)
    return dataclasses.replace(
        screen, experiment=experiment, students=screen.students[:1], attacks=(passive, *rungs),
        ladder=tuple(each.name for each in rungs), controls=(), temperatures=(),
    )  # fmt: skip
