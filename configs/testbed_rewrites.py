"""The arithmetic testbed: finished traces told otherwise, by chance and by what harms the proxies most.

Claim:   none yet. A screen of rewriters under gates, on the clean teacher's traces.
Command: python -m launch.run --config=configs/testbed_rewrites.py --workdir=/data/rewrites \
             --stages=prepare,generate,rewrite,distil,assess,report
Cost:    --dry_run prints how many students it trains; every stage shows how far it is.
Result:  not run yet.

No model of the testbed follows instructions: its own writer, which knows every valid telling, stands for the best that
an instructed rewriter could do. `told` is the control: another telling, chosen by chance.
"""

import dataclasses

from adx.drafting import Rewrite
from adx.rewriters.rendered import Rendered
from adx.rewriters.selected import Selected
from adx.study import Study
from configs import testbed_screen


def study() -> Study:
    screen = testbed_screen.study()
    arms = tuple(arm for arm in screen.experiment.arms if arm.name == 'plain')
    rewrites = (Rewrite('told', 'plain', Rendered(4)), Rewrite('worst', 'plain', Selected(Rendered(4))))
    experiment = dataclasses.replace(screen.experiment, arms=arms, rewrites=rewrites)
    return dataclasses.replace(screen, experiment=experiment, controls=('told',), temperatures=())
