"""What attackers of a study have: a teacher that is asked again, and a model of their own."""

from __future__ import annotations

import optax
import pytest
from studies import make_study, write_holdout, write_traces

from adx import curves, distilling, outcomes_io, study_traces
from adx.attackers import Attackers
from adx.attacks import Attack
from adx.attacks.filters import PerplexityFilter
from adx.attacks.mixing import Reweight
from adx.attacks.queries import Prefill
from adx.attacks.rewrites import Paraphrase
from adx.batching import batches
from adx.datasets.tokenizing import load_tokenizer
from adx.errors import InputError
from adx.evaluation import Likelihood
from adx.experiment import ModelSource
from adx.gradients import Differentiator
from adx.mesh import make_mesh
from adx.study import Student, check

pytestmark = pytest.mark.usefixtures('shared_trainers')


@pytest.mark.slow  # a quarter of a minute
def test_attackers_ask_again_and_judge_by_a_model_of_their_own(students, tmp_path):
    # A random model paraphrases into nothing that ends in the same answer: no lesson is left, so no student either.
    kinds = Prefill('find', samples=2), PerplexityFilter(keep=0.5), Reweight(), Paraphrase()
    study = make_study(
        students[:1], attacks=tuple(Attack(f'a{i}', (kind,)) for i, kind in enumerate(kinds)), seeds=(0,), budgets=(1,),
        own=Student('own', ModelSource(students[1])),
    )  # fmt: skip
    check(study)
    path = str(tmp_path)
    write_traces(study, path)
    with pytest.raises(InputError, match='no clean holdout traces'):
        distilling.distil(study, path)
    assert not outcomes_io.read(path)  # at once, and not when its turn comes
    assert study.wants_holdout
    write_holdout(study, path)
    outcomes = [o for o in distilling.distil(study, path) if o.split == 'tune' and o.source == 'defended']
    asked, filtered, weighted = (next(o.threat for o in outcomes if o.attack == f'a{i}') for i in range(3))
    assert (asked.prefill, asked.samples) == ('find', 2)
    assert filtered.traces == 12
    assert weighted.traces == 24
    assert 'own' in filtered.own_model
    assert not any(o.attack == 'a3' for o in outcomes)


def test_the_own_model_of_attackers_scores_as_it_should(students, tmp_path):
    """Against the definition: a small step along a lesson's gradient changes the loss on clean traces by the score."""
    study = make_study(students, seeds=(0,), own=Student('own', ModelSource(students[1])))
    write_traces(study, str(tmp_path))
    write_holdout(study, str(tmp_path))
    attackers = Attackers(study, str(tmp_path), 0)
    lessons = study_traces.lessons(study, str(tmp_path), 0)['plain'][:3]
    scores = attackers._gradient_scores(lessons)
    own = attackers._own
    tokenizer = load_tokenizer(students[0])
    held = curves.holdout_examples(attackers.path, own.tokenizer, own.student.prompting, 128, tokenizer)
    taker, likelihood = Differentiator(own.loaded.model, make_mesh()), Likelihood(own.loaded.model)
    for lesson, score in zip(lessons, scores, strict=True):
        g, _, _ = taker.mean_gradient(own.loaded.params, [batches(attackers._examples([lesson]), 8)[0][1]])
        step = 1e-2 / float(optax.global_norm(g))
        ends = [
            likelihood.mean({path: w + sign * step * g[path] for path, w in own.loaded.params.items()}, held)
            for sign in (1, -1)
        ]
        assert (ends[0] - ends[1]) / (2 * step) == pytest.approx(score, rel=0.02)
