"""The arithmetic testbed: the screen's finalists against sixteen attacks, each three ways.

Claim:   none. The two attacks that recover most are taken to the confirmation.
Command: python -m launch.run --config=configs/testbed_attacks.py --workdir=/data/attacks \
             --stages=prepare,generate,distil,assess,report
Cost:    --dry_run prints how many students it trains, and `distil` how many minutes that takes. Processes share them:
         --stages=distil --attacks=sft,soft takes two attacks, another process others, in one workdir.
Result:  tools/bench/results/frontier.json, study testbed_attacks, rendered in the README: six of the attacks, the
         others not run. Damage left is -0.05 [-0.14, 0.02] under canonicalise and 0.02 [-0.14, 0.15] under prefill.

Left out: paraphrase, reconstruction and query augmentation want a model that follows instructions (canonicalise is all
that a paraphrase can undo); accounts are one where all are served alike; best of k is in configs/testbed_ladder.py.
"""

import dataclasses

from adx.attacks import (
    AnswerOnly,
    Attack,
    Canonicalise,
    CorrectnessFilter,
    Deduplicate,
    MixClean,
    PerplexityFilter,
    Prefill,
    Reweight,
    ShuffledPrompts,
)  # fmt: skip
from adx.experiment import ModelSource
from adx.study import Student, Study
from configs import testbed_screen

FINALISTS = ('cross_soft',)  # at most three, by the rule of the screen
ATTACKS = (
    Attack('sft'),
    Attack('longer', longer=4.0),
    Attack('deduplicate', (Deduplicate(),)),
    Attack('perplexity_filter', (PerplexityFilter(),)),
    Attack('correctness_filter', (CorrectnessFilter(),)),
    Attack('prefill', (Prefill('the question is'),)),
    Attack('mix_clean', (MixClean(),)),
    Attack('reweight_aligned', (Reweight('aligned'),)),
    Attack('reweight_opposed', (Reweight('opposed'),)),
    Attack('reweight_random', (Reweight('random'),)),
    Attack('canonicalise', (Canonicalise(),)),
    Attack('soft', loss='soft', arguments=(('candidates', 16),)),
    Attack('features', loss='features'),
    Attack('on_policy', loss='on_policy', arguments=(('candidates', 16),)),
    Attack('answer_only', (AnswerOnly(),)),
    Attack('shuffled_prompts', (ShuffledPrompts(),)),
)


def study() -> Study:
    screen = testbed_screen.study()
    arms = tuple(arm for arm in screen.experiment.arms if arm.name in ('plain', *FINALISTS))
    return dataclasses.replace(
        screen, experiment=dataclasses.replace(screen.experiment, arms=arms), students=screen.students[:1],
        attacks=ATTACKS, own=Student('own', ModelSource('testbed-student-wide')), controls=(), temperatures=(),
    )  # fmt: skip
