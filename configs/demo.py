"""The demo: four questions of GSM8K, plain and under two defences, side by side.

Claim:   none about students. It shows what both signs of adversarial decoding do to a real model's traces.
Command: ./tools/demo, which also fetches the weights: SmolLM2-135M-Instruct (Apache-2.0). The proxy is its early exit
         at layer 10 with the translator that ships with adx (python -m tools.fit_translator).
Cost:    12 traces of at most 96 tokens; the run's last line says how long they took.
Result:  the traces. Most are cut off at 96 tokens and four questions measure nothing; no student is trained.
"""

from adx.datasets import Gsm8k
from adx.decoding.engine import DecodeConfig
from adx.defences import CrossModelSoft, ProductOfExperts
from adx.experiment import Arm, Experiment, ModelSource
from adx.types import Sampling

SMOLLM2 = 'smollm2-135m-instruct'


def experiment() -> Experiment:
    return Experiment(
        dataset=Gsm8k(),
        split='train',
        limit=4,
        teacher=ModelSource(SMOLLM2),
        proxies=(ModelSource(SMOLLM2, exit_layer=10, translator='smollm2_exit10'),),
        arms=(
            Arm('plain', sampling=Sampling(temperature=0.7, top_p=0.95)),
            Arm('product_of_experts', ProductOfExperts(gamma=0.3), Sampling(temperature=0.7, top_p=0.95)),
            Arm('cross_model_soft', CrossModelSoft(weight=0.3), Sampling(temperature=0.7, top_k=20, top_p=0.95)),
        ),
        max_new_tokens=96,
        decode=DecodeConfig(slots=4, chunk=8, buckets=(160,), cache_length=256, record='scalars'),
        disclosure='public',
        licence='Apache-2.0',
    )
