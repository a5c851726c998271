"""The arithmetic testbed: rules composed and gated, in search of an eligible, harmful one.

Claim:   none yet. A search on `tune` after a screen whose finalist is weak; nothing of it is a headline.
Command: python -m launch.run --config=configs/testbed_search.py --workdir=/data/search \
             --stages=prepare,generate,distil,assess,report
Cost:    --dry_run prints how many students it trains, and `distil` how many minutes that takes.
Result:  tools/bench/results/frontier.json, study testbed_search, rendered in the README. No combination is both
         eligible and harmful: the greatest damage, of ads_bank, costs the teacher ten points of accuracy.
"""

import dataclasses

from adx.aggregation import Aggregation
from adx.defences import (
    Antidistillation,
    Bank,
    Budget,
    Chain,
    CrossModelSoft,
    EntropyGate,
    ProbabilityFloor,
    ProductOfExperts,
    Schedule,
)  # fmt: skip
from adx.experiment import Arm
from adx.study import Study
from adx.types import Defence
from configs import testbed_screen


def study() -> Study:
    screen, plain = testbed_screen.study(), testbed_screen.PLAIN
    strong = Antidistillation(lam=1.0)
    rules: dict[str, Defence] = {
        'ads_min': Budget(Antidistillation(1.0, Aggregation(how='min')), 0.03),
        'ads_gate': EntropyGate(Budget(strong, 0.1), 0.3),
        'ads_floor': ProbabilityFloor(Budget(strong, 0.1), 0.1),
        'ads_bank': Bank(strong, capacity=2.0, refill=0.02),
        'ads_late': Schedule(Budget(strong, 0.06), start=16, stop=32),
        'poe_budget': Budget(ProductOfExperts(0.6), 0.03),
        'soft_budget': Budget(CrossModelSoft(0.6), 0.03),
        'ads_poe': Budget(Chain((strong, ProductOfExperts(0.6))), 0.03),
    }
    arms = (Arm('plain', sampling=plain), *(Arm(name, rule, plain) for name, rule in rules.items()))
    return dataclasses.replace(
        screen, experiment=dataclasses.replace(screen.experiment, arms=arms), students=screen.students[:1],
        controls=(), temperatures=(),
    )  # fmt: skip
