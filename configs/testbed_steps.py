"""The arithmetic testbed: the screen's finalist at equal steps, against the better base.

Claim:   none: a screen on `tune`. In testbed_screen the best setting of an arm may have more steps than the clean one;
         here the best of each number of steps is trained to its end, for every arm, seed and family.
Command: python -m launch.run --config=configs/testbed_steps.py --workdir=/data/steps \
             --stages=generate,distil,assess,report
Cost:    --dry_run prints how many students it trains, and `distil` how many minutes that takes.
Result:  tools/bench/results/frontier.json, study testbed_steps, rendered in the README. In `wide` the damage of 0.10
         [0.08, 0.13] is gone at equal steps: -0.02 [-0.14, 0.09]. Worked examples make no better base.
"""

import dataclasses

from adx.study import Study
from configs import testbed_screen

SHOTS = 2  # worked examples that the base student is asked behind too


def study() -> Study:
    screen = testbed_screen.study()
    arms = tuple(arm for arm in screen.experiment.arms if arm.name in ('plain', 'cross_soft'))
    experiment = dataclasses.replace(screen.experiment, arms=arms)
    return dataclasses.replace(
        screen, experiment=experiment, each_budget=True, shots=SHOTS, controls=(), temperatures=()
    )
