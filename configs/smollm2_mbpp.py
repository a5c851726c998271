"""SmolLM2 on MBPP: a budgeted defence where the answer is code, which it leaves alone.

Claim:   none about students. Code fences are the teacher's own tokens: a function may differ by the words before it.
Command: python -m launch.run --config=configs/smollm2_mbpp.py --set=dataset.path=mbpp.jsonl --workdir=/tmp/mbpp \
             --stages=prepare,generate
         mbpp.jsonl is the file of github.com/google-research/google-research/tree/master/mbpp.
Cost:    the holdout traces of configs/smollm2_ads_budget.py on programs, and 128 traces of at most 256 tokens.
Result:  tools/bench/results/utility.json, rendered in the README.
"""

import dataclasses

from adx.datasets import Mbpp
from adx.experiment import Experiment
from configs import smollm2_ads_budget


def experiment() -> Experiment:
    base = smollm2_ads_budget.experiment()
    return dataclasses.replace(
        base, dataset=Mbpp(), limit=64, arms=base.arms[:2], protected_spans=('code_fence',),
        decode=dataclasses.replace(base.decode, slots=32), licence='CC-BY-4.0',
    )  # fmt: skip
