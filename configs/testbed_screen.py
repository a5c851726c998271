"""The arithmetic testbed: every defence against a passive student and the attacks that need no model of their own.

Claim:   none yet. This is the screen: three seeds choose which defences are worth confirming, by the lower end of
         `damage` among those that are eligible, at most three of them.
Command: python -m tools.train_testbed --out=/data/testbed && export ADX_CACHE=/data/testbed
         python -m launch.run --config=configs/testbed_screen.py --workdir=/data/screen \
             --stages=prepare,generate,distil,assess,report
Cost:    --dry_run prints how many students it trains; every stage shows how far it is.
Result:  not run yet.
"""

from adx.attacks import Attack
from adx.attacks.filters import CorrectnessFilter, Deduplicate
from adx.attacks.mixing import MixClean, ShuffledPrompts
from adx.attacks.rewrites import AnswerOnly, Canonicalise
from adx.datasets import Arithmetic
from adx.decoding.engine import DecodeConfig
from adx.defences import (
    Antidistillation,
    Budget,
    CrossModelReweight,
    CrossModelSoft,
    EqualKl,
    Permutation,
    ProductOfExperts,
)  # fmt: skip
from adx.experiment import Arm, Derivative, Experiment, ModelSource
from adx.optimising import Recipe
from adx.study import Student, Study
from adx.types import Sampling

PLAIN, HOT = Sampling(temperature=0.7), Sampling(temperature=1.0)


def study() -> Study:
    ads, poe = Antidistillation(lam=1.0), ProductOfExperts(gamma=0.5)
    arms = (
        Arm('plain', sampling=PLAIN),
        Arm('hot', sampling=HOT),
        Arm('poe', poe, PLAIN),
        Arm('cross_soft', CrossModelSoft(weight=0.5), PLAIN),
        Arm('cross_reweight', CrossModelReweight(alpha=1.0), PLAIN),
        Arm('ads', ads, PLAIN),
        Arm('ads_budget', Budget(ads, 0.05), PLAIN),
        Arm('ads_control', EqualKl(Permutation(ads), ads), PLAIN),
        Arm('poe_control', EqualKl(Permutation(poe), poe), PLAIN),
    )
    experiment = Experiment(
        dataset=Arithmetic(), limit=4000, teacher=ModelSource('testbed-teacher'),
        proxies=(ModelSource('testbed-proxy-deep'), ModelSource('testbed-proxy-grouped')),
        derivative=Derivative(prompts=500, max_new_tokens=120), arms=arms, max_new_tokens=120,
        decode=DecodeConfig(slots=64, chunk=8, buckets=(96,), cache_length=224, record='scalars'),
        disclosure='public', licence='Apache-2.0',
    )  # fmt: skip
    transforms = (Deduplicate(), CorrectnessFilter(), MixClean(), AnswerOnly(), Canonicalise(), ShuffledPrompts())
    names = ('deduplicate', 'correct', 'mix', 'answers', 'canonical', 'shuffled')
    attacks = tuple(Attack(name, (one,)) for name, one in zip(names, transforms, strict=True))
    students = [Student(f, ModelSource(f'testbed-student-{f}')) for f in ('wide', 'biased')]
    return Study(
        experiment, tuple(students), (Attack('sft'), *attacks), Recipe(rows=32, beta2=0.98, length=224),
        learning_rates=(3e-4, 1e-3, 3e-3), budgets=(125, 250), controls=('ads_control', 'poe_control'),
        temperatures=('hot',), judge=Student('judge', ModelSource('testbed-judge')), max_new_tokens=120,
        testbed='the arithmetic testbed',
    )  # fmt: skip
