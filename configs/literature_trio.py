"""The literature's models: R1-Distill-Qwen-7B, proxy Qwen2.5-3B, student Llama-3.2-3B.

Claim:   none. It says what a study on the models of arXiv 2504.13146 would take; no weight of them ships with adx.
Command: python -m tools.plan_memory --config=configs/literature_trio.py
         checks the shapes and prints, for meshes of five kinds of machine, memory and the least time of decoding,
         without any weight.
Cost:    seconds.
Result:  the tables that the command prints.
"""

from adx.datasets import Gsm8k
from adx.decoding.engine import DecodeConfig
from adx.defences import Antidistillation
from adx.experiment import Arm, Derivative, Experiment, MeshShape, ModelSource
from adx.optimising import Recipe
from adx.study import Student, Study
from adx.types import Sampling

SAMPLING = Sampling(temperature=0.6, top_p=0.95)


def study() -> Study:
    experiment = Experiment(
        dataset=Gsm8k(),
        teacher=ModelSource('r1-distill-qwen-7b'),
        proxies=(ModelSource('qwen2.5-3b'),),
        derivative=Derivative(prompts=512, max_new_tokens=1024),
        arms=(Arm('plain', sampling=SAMPLING), Arm('ads', Antidistillation(lam=1.0), SAMPLING)),
        max_new_tokens=1024,
        mesh=MeshShape(data=2, model=4),
        decode=DecodeConfig(slots=64, chunk=16, buckets=(128, 256, 512), cache_length=1536, record='scalars'),
        dtype='bfloat16',
        disclosure='public',
        licence='MIT',
    )
    recipe = Recipe(learning_rate=5e-4, lora_rank=128, lora_alpha=128.0, dtype='bfloat16', remat=True, length=2048)
    return Study(experiment, (Student('llama', ModelSource('llama-3.2-3b')),), recipe=recipe, max_new_tokens=1024)
