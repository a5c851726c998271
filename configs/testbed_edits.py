"""The arithmetic testbed: words exchanged where that harms proxies, and where chance has it.

Claim:   none yet. What the gates let through of a search by gradient in a language that leaves little room.
Command: python -m launch.run --config=configs/testbed_edits.py --workdir=/data/edits \
             --stages=prepare,generate,rewrite,distil,assess,report
Cost:    --dry_run prints how many students it trains; every stage shows how far it is.
Result:  tools/bench/results/rewriting.json, rendered in the README, of `--students=wide --attacks=sft`: the gates let
         so few exchanges through that students do not notice, -0.02 [-0.15, 0.10].

Left out are the objective 'bilevel', which has weights of its own for each trace and takes one after the other, and the
step 'embedding', which finds hardly an exchange here: no open word is nearer than the trace's own.
"""

import dataclasses

from adx.datasets.arithmetic_problems import NAMES, OPERATIONS
from adx.drafting import Rewrite
from adx.rewriters.gradient import Gradient
from adx.rewriters.matched import Matched
from adx.study import Study
from configs import testbed_attacks, testbed_rewrites, testbed_screen

FIXED = (*OPERATIONS, *NAMES, *(f'{name}:' for name in NAMES))


def study() -> Study:
    screen = testbed_screen.study()
    arms = tuple(arm for arm in screen.experiment.arms if arm.name == 'plain')
    rewrites = (
        Rewrite('flips', 'plain', Gradient(protected=FIXED)),
        Rewrite('chance', 'plain', Matched(Gradient('random', protected=FIXED), 'flips')),
    )
    experiment = dataclasses.replace(screen.experiment, arms=arms, rewrites=rewrites)
    return dataclasses.replace(
        screen, experiment=experiment, attacks=testbed_rewrites.ATTACKS, each_budget=True, controls=('chance',),
        temperatures=(), left_out=testbed_attacks.LEFT_OUT,
    )  # fmt: skip
