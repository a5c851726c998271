"""SmolLM2 on GSM8K: antidistillation sampling against plain and an equal-price control.

Claim:   none about students. The control moves the wrong tokens, and as far as the rule does at every position: what
         antidistillation does to a trace beyond the control is due to the derivative.
Command: python -m launch.run --config=configs/smollm2_ads.py --workdir=/tmp/ads --stages=prepare,generate
         `prepare` decodes holdout traces of the plain teacher and takes the proxy's gradient on them. The weights are
         those of ./tools/demo, which fetches them.
Cost:    holdout traces of at most 128 tokens, 8 of each of up to 8 questions (the shipped sample holds 3 out), their
         gradient, and 48 traces of at most 256; each stage's last line says how long it took.
Result:  python -m tools.show_traces --workdir=/tmp/ads --limit=0 prints, per arm, how many answers are right and the
         mean KL a token. Sixteen questions are too few to tell arms apart; no student is trained.
"""

from adx.datasets import Gsm8k
from adx.decoding.engine import DecodeConfig
from adx.defences import Antidistillation, EqualKl, Permutation
from adx.experiment import Arm, Derivative, Experiment, ModelSource
from adx.types import Sampling

SMOLLM2 = 'smollm2-135m-instruct'
SAMPLING = Sampling(temperature=0.7, top_p=0.95)


def experiment() -> Experiment:
    rule = Antidistillation(lam=1.0)
    return Experiment(
        dataset=Gsm8k(),
        split='train',
        limit=16,
        teacher=ModelSource(SMOLLM2),
        proxies=(ModelSource(SMOLLM2, exit_layer=10, translator='smollm2_exit10'),),
        derivative=Derivative(prompts=8, samples=8, max_new_tokens=128),
        arms=(
            Arm('plain', sampling=SAMPLING),
            Arm('antidistillation', rule, SAMPLING),
            Arm('control', EqualKl(Permutation(rule), rule), SAMPLING),
        ),
        max_new_tokens=256,
        decode=DecodeConfig(slots=16, chunk=8, buckets=(96, 160, 256), cache_length=512, record='scalars'),
        disclosure='public',
        licence='Apache-2.0',
    )
