"""The arithmetic testbed: how much it matters which valid telling the teacher chooses.

Claim:   none. Not a defence but a ruler: every arm is the same teacher, problem and reasoning, told in one voice
         throughout. What no voice costs a student, no choice among honest tellings will.
Command: python -m launch.run --config=configs/testbed_voices.py --workdir=/data/voices \
             --stages=generate,rewrite,distil,assess,report
Cost:    --dry_run prints how many students it trains; every stage shows how far it is.
Result:  tools/bench/results/rewriting.json, study testbed_voices, rendered in the README. The largest estimate of
         damage is 0.12, with an interval that holds 0.

The gates of fluency and retention are open: the teacher mixes voices, and a plain one leaves its checks out.
"""

import dataclasses

from adx.datasets.arithmetic_problems import VOICES
from adx.drafting import Rewrite
from adx.gates import Gates
from adx.rewriters.rendered import Rendered
from adx.study import Study
from configs import testbed_attacks, testbed_rewrites, testbed_screen

OPEN = Gates(retention=0.1, fluency=10.0)


def study() -> Study:
    screen = testbed_screen.study()
    arms = tuple(arm for arm in screen.experiment.arms if arm.name == 'plain')
    rewrites = tuple(Rewrite(voice, 'plain', Rendered(1, voice), OPEN) for voice in VOICES)
    experiment = dataclasses.replace(screen.experiment, arms=arms, rewrites=rewrites)
    return dataclasses.replace(
        screen, experiment=experiment, students=screen.students[:1], attacks=testbed_rewrites.ATTACKS,
        controls=tuple(VOICES), temperatures=(), left_out=testbed_attacks.LEFT_OUT,
    )  # fmt: skip
