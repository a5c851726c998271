"""The arithmetic testbed: the clean traces that marks are put into, alone.

Claim:   none of its own: tools/bench/trigger.py trains suspects on these traces, marked or not, and judges them.
Command: python -m launch.run --config=configs/testbed_marks.py --workdir=/data/marks --stages=generate
         python -m tools.bench.trigger --config=configs/testbed_marks.py --workdir=/data/marks --out=/data/trigger
Cost:    6,000 traces, then 17 students, beside which five models are judged that saw no trace; --part and --parts
         divide the students among processes.
Result:  tools/bench/results/trigger.json, rendered in the README.
"""

import dataclasses

from adx.study import Study
from configs import testbed_screen


def study() -> Study:
    screen = testbed_screen.study()
    arms = tuple(arm for arm in screen.experiment.arms if arm.name == screen.clean)
    experiment = dataclasses.replace(screen.experiment, arms=arms, proxies=())
    return dataclasses.replace(
        screen, experiment=experiment, controls=(), temperatures=(), learning_rates=(1e-3,), budgets=(250,)
    )
