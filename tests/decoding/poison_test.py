"""A row whose teacher gives no finite numbers ends there and says so, and harms no other."""

from __future__ import annotations

import dataclasses

import fakes
import numpy as np
import pytest

from adx.decoding.engine import Engine
from adx.defences import ProductOfExperts, Undefended
from adx.types import POISONED, Sampling

BROKEN = (7, 11)  # tokens that the teacher answers with nan
TEACHER = dataclasses.replace(fakes.TEACHER, tied=False)


SAMPLINGS = (Sampling(), Sampling(0.0), Sampling(top_k=20, top_p=0.9, min_p=0.01))


@pytest.mark.parametrize('rule', [Undefended(), ProductOfExperts(0.9)], ids=lambda rule: type(rule).__name__)
@pytest.mark.parametrize('record', ['none', 'scalars'])
def test_a_poisoned_row_ends_where_it_broke_and_the_others_are_as_ever(rule, record):
    """Also the next rows of its slot."""
    requests = fakes.make_requests(40, rule)
    requests = [dataclasses.replace(one, sampling=SAMPLINGS[i % 3]) for i, one in enumerate(requests)]
    ensemble, weights = fakes.make_ensemble(teacher=TEACHER)
    engine = Engine(ensemble, weights, dataclasses.replace(fakes.DECODE, record=record), 0, (5,), (5,))
    sound = {one.id: one for one in engine.generate(requests)}
    embed = weights.teacher['embed'].at[np.array(BROKEN)].set(np.nan)
    engine.weights = weights._replace(teacher=weights.teacher | {'embed': embed})
    done, ended = {one.id: one for one in engine.generate(requests)}, 0
    for request in requests:
        mine, theirs = done[request.id], sound[request.id]
        read = [*request.tokens, *theirs.tokens[:-1]]
        first = next((i for i, token in enumerate(read) if token in BROKEN), None)
        if first is None:
            assert mine == theirs
            continue
        ended += 1
        kept = max(0, first + 1 - len(request.tokens))
        assert (mine.tokens, mine.stop) == (theirs.tokens[:kept], POISONED)
        assert all(len(values) == kept and np.isfinite(values).all() for values in mine.statistics.values())
    assert 0 < ended < len(requests)
