"""SmolLM2 on GSM8K: product of experts against plain and against permuted changes.

Claim:   none about students. The permuted arm makes score changes of the same sizes without information about the
         proxy: what product of experts does to a trace beyond that is due to the proxy.
Command: python -m launch.run --config=configs/smollm2_poe.py --workdir=/tmp/run
         The weights are those of ./tools/demo, which fetches them; the models and shapes are those of
         python -m tools.bench.decoding.
Cost:    48 traces of at most 256 tokens; the run's last line says how long they took.
Result:  python -m tools.show_traces --workdir=/tmp/run --limit=0 prints, per arm, how many answers are right and the
         mean KL a token. Sixteen questions are too few to tell arms apart; no student is trained.
"""

from adx.datasets import Gsm8k
from adx.decoding.engine import DecodeConfig
from adx.defences import Permutation, ProductOfExperts
from adx.experiment import Arm, Experiment, ModelSource
from adx.types import Sampling

SMOLLM2 = 'smollm2-135m-instruct'
SAMPLING = Sampling(temperature=0.7, top_p=0.95)


def experiment() -> Experiment:
    rule = ProductOfExperts(gamma=0.3)
    return Experiment(
        dataset=Gsm8k(),
        split='train',
        limit=16,
        teacher=ModelSource(SMOLLM2),
        proxies=(ModelSource(SMOLLM2, exit_layer=10, translator='smollm2_exit10'),),
        arms=(
            Arm('plain', sampling=SAMPLING),
            Arm('product_of_experts', rule, SAMPLING),
            Arm('permutation', Permutation(rule), SAMPLING),
        ),
        max_new_tokens=256,
        decode=DecodeConfig(slots=16, chunk=8, buckets=(96, 160, 256), cache_length=512, record='scalars'),
        disclosure='public',
        licence='Apache-2.0',
    )
