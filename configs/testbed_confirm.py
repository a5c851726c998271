"""The arithmetic testbed: the screen's cross_soft and its control on `test`, new seeds.

Claim:   none. The screen's figures are of a search and these are not: its 0.10 of damage in family `wide` is not found.
Command: python -m launch.run --config=configs/testbed_confirm.py --workdir=/data/confirm \
             --stages=freeze,generate,distil,assess,report
Cost:    --dry_run prints how many students it trains, and `distil` how many minutes that takes. With
         --stages=distil --students=wide and --students=biased two processes share the work.
Result:  tools/bench/results/frontier.json, study testbed_confirm, rendered in the README; the control under attacks is
         not run. At equal steps damage is -0.03 [-0.07, 0.01] in `wide` and 0.07 [0.03, 0.11] in `biased`, of which
         canonicalising leaves -0.02 [-0.07, 0.02] and `soft` -0.06 [-0.14, 0.02]. Not eligible: forced answers lose
         3.5 [3.2, 3.8] points. Answers alone and shuffled prompts teach nobody.

20,000 prompts, 2,500 a seed, say whether the teacher loses accuracy. The control spends as much KL as the rule does, on
words that are drawn by chance.
"""

import dataclasses

from adx.datasets import Arithmetic
from adx.defences import EqualKl, Permutation
from adx.experiment import Arm
from adx.study import Study
from configs import testbed_attacks, testbed_screen

WORST = ('canonicalise', 'soft')  # of testbed_attacks, those that leave the least damage
CONTROLS = ('answer_only', 'shuffled_prompts')


def study() -> Study:
    screen = testbed_screen.study()
    arms = {arm.name: arm for arm in screen.experiment.arms}
    rule = arms['cross_soft']
    control = Arm('soft_control', EqualKl(Permutation(rule.defence), rule.defence), rule.sampling)
    experiment = dataclasses.replace(
        screen.experiment, dataset=Arithmetic(seed=2, size=20_000), limit=2500, arms=(arms['plain'], rule, control)
    )  # fmt: skip
    attacks = tuple(attack for attack in testbed_attacks.ATTACKS if attack.name in ('sft', *WORST, *CONTROLS))
    return dataclasses.replace(
        screen, experiment=experiment, attacks=attacks, own=testbed_attacks.study().own, seeds=tuple(range(100, 108)),
        fresh_prompts=True, each_budget=True, shots=2, split='test', controls=('soft_control',), temperatures=(),
        left_out=testbed_attacks.LEFT_OUT, searched=('wide',),
    )  # fmt: skip
