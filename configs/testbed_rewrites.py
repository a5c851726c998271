"""The arithmetic testbed: finished traces said otherwise, by chance, by what harms proxies, and word by word.

Claim:   none yet. A screen of rewriters under gates, alone and after adversarial decoding.
Command: python -m launch.run --config=configs/testbed_rewrites.py --workdir=/data/rewrites \
             --stages=prepare,generate,rewrite,distil,assess,report
Cost:    --dry_run prints how many students it trains; every stage shows how far it is.
Result:  not run yet.

No model of the testbed follows instructions: its own writer, which knows every valid telling, stands for the best that
an instructed rewriter could do. `told` and `chance` are the controls: another telling, and other words, by chance.
"""

import dataclasses

from adx.datasets.arithmetic_problems import NAMES, OPERATIONS
from adx.drafting import Rewrite
from adx.rewriters.gradient import Gradient
from adx.rewriters.rendered import Rendered
from adx.rewriters.selected import Selected
from adx.study import Study
from configs import testbed_screen

FIXED = (*OPERATIONS, *NAMES, *(f'{name}:' for name in NAMES))


def study() -> Study:
    screen = testbed_screen.study()
    arms = tuple(arm for arm in screen.experiment.arms if arm.name in ('plain', 'ads_budget'))
    rewrites = (
        Rewrite('told', 'plain', Rendered(4)),
        Rewrite('worst', 'plain', Selected(Rendered(8))),
        Rewrite('flips', 'plain', Gradient(protected=FIXED)),
        Rewrite('chance', 'plain', Gradient('random', protected=FIXED)),
        Rewrite('both', 'ads_budget', Selected(Rendered(8))),
    )
    experiment = dataclasses.replace(screen.experiment, arms=arms, rewrites=rewrites)
    return dataclasses.replace(screen, experiment=experiment, controls=('told', 'chance'), temperatures=())
