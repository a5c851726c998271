"""SmolLM2 on GSM8K: its traces said otherwise by itself, and word by word, through gates.

Claim:   none about students: it shows what a small model's rewrites and a search by gradient leave of real traces.
Command: python -m launch.run --config=configs/smollm2_rewrites.py --workdir=/tmp/rewrites \
             --stages=prepare,generate,rewrite
         The weights are those of ./tools/demo, which fetches them.
Cost:    the traces of configs/smollm2_ads.py and as many answers to instructions; every stage shows how far it is.
Result:  tools/bench/results/rewrites.json, of --set=limit=4, rendered in the README: no paraphrase passes the gates
         (most state another answer), three of four traces are changed by flips;
         python -m tools.show_traces --workdir=/tmp/rewrites --limit=0 shows them side by side.
"""

import dataclasses

from adx.drafting import Rewrite
from adx.experiment import Arm, Experiment
from adx.rewriters.gradient import Gradient
from adx.rewriters.instructed import Instructed
from adx.rewriters.selected import Selected
from configs import smollm2_ads


def experiment() -> Experiment:
    return dataclasses.replace(
        smollm2_ads.experiment(),
        arms=(Arm('plain', sampling=smollm2_ads.SAMPLING),),
        rewrites=(
            Rewrite('paraphrase', 'plain', Instructed('paraphrase', tries=4)),
            Rewrite('worst', 'plain', Selected(Instructed('paraphrase', tries=4))),
            Rewrite('flips', 'plain', Gradient(rounds=2, edits=4)),
        ),
    )
