"""The bridge: the testbed's screen on SmolLM2, fine-tuned on the arithmetic in words.

Claim:   none yet. Defences that rank here as on the testbed make the testbed's ranking worth something.
Command: python -m tools.train_bridge --out=$HOME/.cache/adx
         python -m launch.run --config=configs/bridge.py --workdir=/data/bridge_screen \
             --stages=prepare,generate,distil,assess && \
         python -m launch.run --config=configs/bridge.py --workdir=/data/bridge_screen --stages=report \
             --beside=/data/screen
Cost:    work for a GPU; --dry_run prints how many students it trains. --beside names the workdir of the testbed's
         screen, with which the report compares.
Result:  not run yet: it wants a GPU. Of the two students only `gemma` is unseen; the judge is what teacher and proxy
         were fine-tuned from.
"""

import dataclasses

from adx.decoding.engine import DecodeConfig
from adx.experiment import ModelSource
from adx.optimising import Recipe
from adx.study import Student, Study
from configs import testbed_screen


def study() -> Study:
    screen = testbed_screen.study()
    experiment = dataclasses.replace(
        screen.experiment, teacher=ModelSource('bridge-teacher'), proxies=(ModelSource('bridge-proxy'),),
        decode=DecodeConfig(slots=64, chunk=8, buckets=(128, 192), cache_length=512, record='scalars'),
        max_new_tokens=320, dtype='bfloat16',
        derivative=dataclasses.replace(screen.experiment.derivative, max_new_tokens=320),
    )  # fmt: skip
    students = (
        Student('pruned', ModelSource('bridge-student'), seen=True),  # its layers are the proxy's, and more of them
        Student('gemma', ModelSource('bridge-student-gemma')),
    )
    return dataclasses.replace(
        screen, experiment=experiment, students=students, max_new_tokens=320,
        judge=Student('judge', ModelSource('smollm2-135m-instruct')), budgets=(100, 200),
        learning_rates=(5e-5, 1e-4, 2e-4), recipe=Recipe(rows=32, length=512, pack=True, dtype='bfloat16'),
        testbed='SmolLM2 fine-tuned on the arithmetic in words',
    )  # fmt: skip
