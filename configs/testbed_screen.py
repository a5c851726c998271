"""The arithmetic testbed: every defence against a passive student, in two families.

Claim:   none: it shortlists, for a confirmation, at most three eligible defences whose `damage` in family `wide` has a
         lower end above 0, the greatest first. Family `biased` decides nothing, so that it stays unused in any search.
Command: python -m launch.run --config=configs/testbed_screen.py --workdir=/data/screen \
             --stages=prepare,generate,distil,assess,report
Cost:    made for two cores: --dry_run prints how many students it trains, and `distil` how many minutes that takes.
         With --stages=distil --students=wide and --students=biased two processes share the work.
Result:  tools/bench/results/frontier.json, study testbed_screen, rendered in the README. Nothing is shortlisted: only
         ads and its control are eligible (cross_soft loses 3.2 [2.7, 3.8] points of forced answers).
"""

from adx.datasets import Arithmetic
from adx.decoding.engine import DecodeConfig
from adx.defences import (
    Antidistillation,
    Budget,
    CrossModelHard,
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

PLAIN = Sampling(temperature=0.7)


def study() -> Study:
    ads, poe = Antidistillation(lam=0.1), ProductOfExperts(gamma=0.3)
    arms = (
        Arm('plain', sampling=PLAIN),
        Arm('warm', sampling=Sampling(temperature=0.85)),
        Arm('hot', sampling=Sampling(temperature=1.0)),
        Arm('cross_hard', CrossModelHard(), PLAIN),
        Arm('cross_soft', CrossModelSoft(weight=0.2), PLAIN),
        Arm('cross_reweight', CrossModelReweight(alpha=0.3), PLAIN),
        Arm('poe', poe, PLAIN),
        Arm('ads', ads, PLAIN),
        Arm('ads_budget', Budget(Antidistillation(lam=1.0), 0.03), PLAIN),
        Arm('poe_control', EqualKl(Permutation(poe), poe), PLAIN),
        Arm('ads_control', EqualKl(Permutation(ads), ads), PLAIN),
    )
    experiment = Experiment(
        dataset=Arithmetic(), limit=2000, teacher=ModelSource('testbed-teacher'), arms=arms, max_new_tokens=120,
        proxies=(ModelSource('testbed-proxy-deep'), ModelSource('testbed-proxy-grouped')),
        derivative=Derivative(prompts=256, max_new_tokens=120), disclosure='public', licence='Apache-2.0',
        decode=DecodeConfig(slots=64, chunk=8, buckets=(96,), cache_length=224, record='scalars'),
    )  # fmt: skip
    students = [Student(f, ModelSource(f'testbed-student-{f}')) for f in ('wide', 'biased')]
    return Study(
        experiment, tuple(students), recipe=Recipe(rows=8, beta2=0.98, length=192, pack=True),
        learning_rates=(5e-4, 1e-3, 2e-3), budgets=(125, 250), controls=('ads_control', 'poe_control'),
        temperatures=('warm', 'hot'), judge=Student('judge', ModelSource('testbed-judge')), max_new_tokens=120,
        testbed='the arithmetic testbed',
    )  # fmt: skip
