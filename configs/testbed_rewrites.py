"""The arithmetic testbed: traces told otherwise, by chance, by harm to proxies, and both.

Claim:   none. A screen of rewriters under gates: on the clean traces and on those of the finalist of the screen.
Command: python -m launch.run --config=configs/testbed_rewrites.py --workdir=/data/rewrites \
             --stages=prepare,generate,rewrite,distil,assess,report
Cost:    --dry_run prints how many students it trains; every stage shows how far it is. Processes share them by
         --students and --attacks.
Result:  tools/bench/results/rewriting.json, study testbed_rewrites, rendered in the README. Damage of the tellings
         that harm proxies most 0.04 [-0.15, 0.21], of those by chance 0.09 [-0.07, 0.24].

No model of the testbed follows instructions: its own writer, which knows every valid telling, stands for the best that
an instructed rewriter could do. `told` is the control: another telling, chosen by chance. `answer_only` is what a
student learns without any reasoning.
"""

import dataclasses

from adx.attacks import AnswerOnly, Attack, Canonicalise, ShuffledPrompts
from adx.drafting import Rewrite
from adx.rewriters.rendered import Rendered
from adx.rewriters.selected import Selected
from adx.study import Study
from configs import testbed_screen

FINALIST = 'cross_soft'  # of the screen
WORST = Selected(Rendered(8))
ATTACKS = (  # of every study of rewrites
    Attack('sft'),
    Attack('answer_only', (AnswerOnly(),)),
    Attack('shuffled_prompts', (ShuffledPrompts(),)),
    Attack('canonicalise', (Canonicalise(),)),
)


def study() -> Study:
    screen = testbed_screen.study()
    arms = tuple(arm for arm in screen.experiment.arms if arm.name in ('plain', FINALIST))
    rewrites = (
        Rewrite('told', 'plain', Rendered(1)),
        Rewrite('worst', 'plain', WORST),
        Rewrite('both', FINALIST, WORST),
    )
    experiment = dataclasses.replace(screen.experiment, arms=arms, rewrites=rewrites)
    return dataclasses.replace(screen, experiment=experiment, attacks=ATTACKS, controls=('told',), temperatures=())
