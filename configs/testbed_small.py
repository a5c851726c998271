"""The testbed's screen in small: every stage in a few minutes, and no figure to quote.

Claim:   none: it shows that the instrument runs. Two seeds, one family of students and 48 prompts decide nothing.
Command: python -m launch.run --config=configs/testbed_small.py --workdir=/tmp/adx_small \
             --stages=prepare,generate,distil,assess,report
Cost:    it is one of the tests.
Result:  nothing to quote.
"""

import dataclasses

from adx.study import Study
from configs import testbed_screen

ARMS = ('plain', 'ads_budget')


def study() -> Study:
    screen = testbed_screen.study()
    whole = screen.experiment
    experiment = dataclasses.replace(
        whole, arms=tuple(arm for arm in whole.arms if arm.name in ARMS), limit=48, proxies=whole.proxies[:1],
        derivative=dataclasses.replace(whole.derivative, prompts=24),
    )  # fmt: skip
    return dataclasses.replace(
        screen, experiment=experiment, students=screen.students[:1], fresh_prompts=True, learning_rates=(1e-3,),
        budgets=(10,), seeds=(0, 1), exam=32, choice=16, curve=1, controls=(), temperatures=(),
    )  # fmt: skip
