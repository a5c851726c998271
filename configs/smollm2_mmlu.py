"""SmolLM2 on MMLU: a budgeted defence where one of four letters is the answer.

Claim:   none about students.
Command: python -m launch.run --config=configs/smollm2_mmlu.py --set=dataset.path=DIR --workdir=/tmp/mmlu \
             --stages=prepare,generate
         DIR has dev/ and test/ of the CSV files of github.com/hendrycks/test.
Cost:    the holdout traces of configs/smollm2_ads_budget.py on such questions, and 128 traces of at most 256 tokens.
Result:  tools/bench/results/utility.json, rendered in the README.
"""

import dataclasses

from adx.datasets import Mmlu
from adx.experiment import Experiment
from configs import smollm2_ads_budget


def experiment() -> Experiment:
    base = smollm2_ads_budget.experiment()
    return dataclasses.replace(
        base, dataset=Mmlu(), limit=64, arms=base.arms[:2], licence='MIT',
        decode=dataclasses.replace(base.decode, slots=32, buckets=(96, 160, 256, 512), cache_length=768),
    )  # fmt: skip
