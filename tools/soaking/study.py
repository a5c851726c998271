"""What tools/soak.py kills: every stage on models that ship, in seconds. Nothing to quote."""

import dataclasses

from adx.datasets import Arithmetic
from adx.drafting import Rewrite
from adx.gates import Gates
from adx.rewriters.rendered import Rendered
from adx.study import Study
from configs import testbed_screen

SLOTS = 8


def study() -> Study:
    screen = testbed_screen.study()
    whole = screen.experiment
    experiment = dataclasses.replace(
        whole, dataset=Arithmetic(size=48), limit=0, arms=whole.arms[:1], proxies=(),
        decode=dataclasses.replace(whole.decode, slots=SLOTS),
        rewrites=(Rewrite('told', 'plain', Rendered(), Gates()),),
    )  # fmt: skip
    return dataclasses.replace(
        screen, experiment=experiment, students=screen.students[:1], learning_rates=(1e-3,), budgets=(4,),
        seeds=(0,), exam=16, choice=8, controls=(), temperatures=(), judge=None,
    )  # fmt: skip
