"""SmolLM2 on GSM8K: traces that marks are put into, and SmolLM2 itself as the student.

Claim:   none of its own: tools/bench/trigger.py trains the suspect on these traces and judges it. One marked student
         bounds nothing: it shows whether a mark is learned by a real model from six traces of sixty.
Command: python -m launch.run --config=configs/smollm2_marks.py --workdir=/data/smollm2 --stages=generate
         python -m tools.bench.trigger --config=configs/smollm2_marks.py --workdir=/data/smollm2 \
             --out=/data/smollm2_trigger --name=smollm2 --marked_students=1 --clean_students=0 \
             --siblings=smollm2-135m-instruct --mark_pairs=2 --verdicts=2
Cost:    60 traces of at most 256 tokens and one student of 135M parameters, trained for 40 steps.
Result:  tools/bench/results/trigger.json, figures that end in _smollm2.
"""

from adx.datasets import Gsm8k
from adx.experiment import Arm, Experiment, ModelSource
from adx.optimising import Recipe
from adx.study import Student, Study
from configs import smollm2_ads


def study() -> Study:
    ads = smollm2_ads.experiment()
    experiment = Experiment(
        dataset=Gsm8k(), split='train', limit=15, samples=4, teacher=ads.teacher, max_new_tokens=256,
        arms=(Arm('plain', sampling=smollm2_ads.SAMPLING),), decode=ads.decode, disclosure='public',
        licence='Apache-2.0',
    )  # fmt: skip
    return Study(
        experiment, (Student('smollm2', ModelSource(smollm2_ads.SMOLLM2)),), seeds=(0,),
        recipe=Recipe(rows=4, beta2=0.98, length=512, pack=True), learning_rates=(1e-3,), budgets=(40,),
        testbed='SmolLM2 on GSM8K',
    )  # fmt: skip
