"""The arithmetic testbed: of four samples the one served, by chance, length or proxies.

Claim:   none. A screen of selections among whole answers, which leave the teacher's accuracy as it is.
Command: python -m launch.run --config=configs/testbed_selection.py --workdir=/data/selection \
             --stages=prepare,generate,select,distil,assess,report
Cost:    --dry_run prints how many students it trains; every stage shows how far it is.
Result:  tools/bench/results/frontier.json, study testbed_selection, rendered in the README. At equal steps the sample
         that harms the proxies most takes -0.05 [-0.10, -0.01] in `wide` and -0.07 [-0.23, 0.06] in `biased`.
"""

import dataclasses

from adx.experiment import Arm
from adx.selection import Selection
from adx.study import Study
from configs import testbed_screen


def study() -> Study:
    screen = testbed_screen.study()
    selections = (
        Selection('first', 'plain', 'first'),
        Selection('random', 'plain', 'random', correctness_matched=True),
        Selection('max_length', 'plain', 'max_length', correctness_matched=True),
        Selection('max_nll', 'plain', 'max_nll', correctness_matched=True),
        Selection('max_harm', 'plain', 'max_harm', correctness_matched=True),
    )
    arms = (Arm('plain', sampling=testbed_screen.PLAIN),)
    experiment = dataclasses.replace(screen.experiment, arms=arms, selections=selections, samples=4)
    controls = ('random', 'max_length')
    return dataclasses.replace(
        screen, experiment=experiment, clean='first', each_budget=True, choice=500, controls=controls, temperatures=()
    )
