"""The arithmetic testbed: the screen's finalists against eighteen attacks, each three ways.

Claim:   none. The two attacks that recover most are taken to the confirmation.
Command: python -m launch.run --config=configs/testbed_attacks.py --workdir=/data/attacks \
             --stages=prepare,generate,distil,assess,report
Cost:    --dry_run prints how many students it trains, and `distil` how many minutes that takes. Processes share them:
         --stages=distil --attacks=sft,soft takes two attacks, another process others, in one workdir.
Result:  tools/bench/results/frontier.json, study testbed_attacks, rendered in the README. The least damage is left by
         soft, -0.05 [-0.27, 0.15], and canonicalise, -0.02 [-0.08, 0.03].
"""

import dataclasses

from adx import attacks as menu
from adx.attacks import Attack
from adx.experiment import ModelSource
from adx.study import Student, Study
from configs import testbed_screen

FINALISTS = ('cross_soft',)  # by the rule of the screen, as it was judged before forced answers were measured
ATTACKS = (
    Attack('sft'),
    Attack('longer', longer=4.0),
    Attack('deduplicate', (menu.Deduplicate(),)),
    Attack('perplexity_filter', (menu.PerplexityFilter(),)),
    Attack('correctness_filter', (menu.CorrectnessFilter(),)),
    Attack('prefill', (menu.Prefill('the question is'),)),
    Attack('mix_clean', (menu.MixClean(),)),
    Attack('reweight_aligned', (menu.Reweight('aligned'),)),
    Attack('reweight_opposed', (menu.Reweight('opposed'),)),
    Attack('reweight_random', (menu.Reweight('random'),)),
    Attack('canonicalise', (menu.Canonicalise(),)),
    Attack('soft', loss='soft', arguments=(('candidates', 16),)),
    Attack('features', loss='features'),
    Attack('on_policy', loss='on_policy', arguments=(('candidates', 16),)),
    Attack('answer_only', (menu.AnswerOnly(),)),
    Attack('shuffled_prompts', (menu.ShuffledPrompts(),)),
    Attack('best_of_k', (menu.Prefill('', samples=4), menu.BestOfK(4))),
    Attack('self_consistency', (menu.Prefill('', samples=4), menu.BestOfK(4, 'self_consistency'))),
)
LEFT_OUT = (
    *((name, 'no model here follows instructions') for name in ('paraphrase', 'inversion', 'solo', 'augment_queries')),
    ('accounts', 'all accounts are served alike'),
)


def study() -> Study:
    screen = testbed_screen.study()
    arms = tuple(arm for arm in screen.experiment.arms if arm.name in ('plain', *FINALISTS))
    return dataclasses.replace(
        screen, experiment=dataclasses.replace(screen.experiment, arms=arms), students=screen.students[:1],
        attacks=ATTACKS, own=Student('own', ModelSource('testbed-student-wide')), controls=(), temperatures=(),
        left_out=LEFT_OUT,
    )  # fmt: skip
