"""What tools/soak.py kills: every stage on models that ship, in seconds. Nothing to quote."""

import dataclasses

from adx.drafting import Rewrite
from adx.gates import Gates
from adx.rewriters.rendered import Rendered
from adx.study import Study
from configs import testbed_screen

ARMS = ('plain', 'cross_soft')


def study() -> Study:
    screen = testbed_screen.study()
    whole = screen.experiment
    experiment = dataclasses.replace(
        whole, arms=tuple(arm for arm in whole.arms if arm.name in ARMS), limit=96, proxies=whole.proxies[:1],
        decode=dataclasses.replace(whole.decode, slots=16),
        rewrites=(Rewrite('told', 'plain', Rendered(), Gates()),),
    )  # fmt: skip
    return dataclasses.replace(
        screen, experiment=experiment, students=screen.students[:1], learning_rates=(1e-3,), budgets=(4,),
        seeds=(0,), exam=16, choice=8, controls=(), temperatures=(), judge=None,
    )  # fmt: skip
