"""The arithmetic testbed: traces told otherwise, by chance, by harm to proxies, and both.

Claim:   none. A screen of rewriters under gates: on the clean traces and on those of the finalist of the screen.
Command: python -m launch.run --config=configs/testbed_rewrites.py --workdir=/data/rewrites \
             --stages=prepare,generate,rewrite,distil,assess,report
Cost:    --dry_run prints how many students it trains; every stage shows how far it is. Processes share them by
         --students and --attacks.
Result:  tools/bench/results/rewriting.json, rendered in the README, of `--students=wide --attacks=sft,answer_only`: the
         tellings that harm proxies most take 0.15 [0.13, 0.18] from students that train for half as many steps as the
         clean ones, and 0.04 [-0.05, 0.12] at equal steps, as their control does: 0.04 [-0.02, 0.08].

No model of the testbed follows instructions: its own writer, which knows every valid telling, stands for the best that
an instructed rewriter could do. `told` is the control: of as many tellings the one that is as long and as far from the
trace as that of `worst`. `answer_only` is what a student learns without any reasoning.
"""

import dataclasses

from adx.attacks import AnswerOnly, Attack, Canonicalise, ShuffledPrompts
from adx.drafting import Rewrite
from adx.rewriters.matched import Matched
from adx.rewriters.rendered import Rendered
from adx.rewriters.selected import Selected
from adx.study import Study
from configs import testbed_attacks, testbed_screen

FINALIST = 'cross_soft'  # of the screen
TELLINGS = Rendered(8)
WORST = Selected(TELLINGS)
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
        Rewrite('worst', 'plain', WORST),
        Rewrite('told', 'plain', Matched(TELLINGS, 'worst')),
        Rewrite('both', FINALIST, WORST),
    )
    experiment = dataclasses.replace(screen.experiment, arms=arms, rewrites=rewrites)
    return dataclasses.replace(
        screen, experiment=experiment, attacks=ATTACKS, each_budget=True, controls=('told',), temperatures=(),
        left_out=testbed_attacks.LEFT_OUT,
    )
