"""Students that learn from more than words, and teachers that are asked meanwhile."""

from __future__ import annotations

import dataclasses
import types

import numpy as np
import pytest
from studies import SMALL, make_study, write_traces

from adx import distilling, study_traces
from adx.attackers import Attackers
from adx.attacks import Attack
from adx.batching import Example
from adx.datasets.chat import encode_prompt
from adx.errors import ConfigError, InputError
from adx.families import make_family, make_lab
from adx.lesson_encoding import encode
from adx.models.transformer import make_model
from adx.selection import Selection
from adx.study import check
from adx.supervision import supervise
from adx.types import RequestId

pytestmark = pytest.mark.usefixtures('shared_trainers')


@pytest.fixture(scope='module')
def class_(students, tmp_path_factory):
    """One family, the attackers of one seed, and the lessons of the defended arm."""
    study, path = make_study(students[:1], seeds=(0,)), str(tmp_path_factory.mktemp('study'))
    write_traces(study, path)
    lab = make_lab(study, path, lambda *at: None)
    family, lessons = make_family(lab, study.students[0]), study_traces.lessons(study, path, 0)
    encoded = encode(lessons['poe'], family.tokenizer, family.student.prompting, 128, lab.teacher)
    return types.SimpleNamespace(
        path=path, study=study, family=family, attackers=Attackers(study, path, 0), lessons=lessons, encoded=encoded
    )


def test_teachers_are_asked_while_students_learn(students, tmp_path):
    """Labels asked for anew, hidden states, and labels of the students' own answers."""
    attacks = (
        Attack('sft'),
        Attack('labels', loss='soft', arguments=(('candidates', 40),)),
        Attack('features', loss='features', arguments=(('weight', 0.5),)),
        Attack('on_policy', loss='on_policy', arguments=(('every', 2), ('prompts', 4))),
    )
    study = make_study(students[:1], attacks=attacks, seeds=(0,), budgets=(3,), learning_rates=(1e-3,))
    check(study)
    path = str(tmp_path)
    write_traces(study, path)
    outcomes = [o for o in distilling.distil(study, path) if o.split == 'tune' and o.source == 'defended']
    threats = {o.attack: o.threat for o in outcomes}
    assert (threats['labels'].log_probs, threats['labels'].queries, threats['labels'].scored) == (40, 24, 24)
    assert "teacher's hidden states" in threats['features'].own_model
    on_policy = threats['on_policy']
    assert (on_policy.log_probs, on_policy.queries, on_policy.scored) == (100, 24, 2 * 4)
    assert not any(o.diverged for o in outcomes)


def test_own_answers_are_the_students_and_labelled_by_the_arm(class_):
    attack = Attack('gkd', loss='on_policy', arguments=(('every', 2), ('prompts', 10)))
    shown = supervise(class_.attackers, class_.family, attack, 'poe', class_.encoded)
    params, other = class_.family.params, make_model(SMALL).init(9)
    turns = (params, 0), (params, 0), (params, 1), (other, 0)
    first, again, second, others = (shown.fresh(*turn) for turn in turns)
    assert first.examples == again.examples
    rows = [{RequestId.parse(example.id).row for example in corpus.examples} for corpus in (first, second)]
    assert len(rows[0]) == len(rows[1]) == 10
    assert not rows[0] & rows[1]
    assert [e.prompt for e in first.examples] == [e.prompt for e in others.examples]
    assert [e.completion for e in first.examples] != [e.completion for e in others.examples]
    prompts = {lesson.prompt_id: lesson.prompt for lesson in class_.lessons['poe']}
    asked = {e.id: prompts['/'.join(e.id.split('/')[:3])] for e in first.examples}
    expected = class_.attackers.labels('poe', first.examples, asked, 128)
    for example in first.examples:
        np.testing.assert_array_equal(first.extras['ids'][example.id], expected['ids'][example.id])
    assert shown.scored(5) == 30


def test_features_are_the_teachers_where_it_predicts(class_):
    attackers, model, lesson = class_.attackers, make_model(SMALL), class_.lessons['plain'][0]
    tokens = (*attackers.models.tokenizer.encode('so 3'), 1)
    found = attackers.features('plain', [Example(lesson.id, (5,), tokens)], {lesson.id: lesson.prompt})[lesson.id]
    prompt = encode_prompt(lesson.messages, attackers.models.tokenizer, class_.study.experiment.prompting)
    read = np.array([[*prompt, *tokens]])
    x_BLD, _ = model.apply(model.init(0), read, np.arange(read.shape[1])[None], method='hidden')
    np.testing.assert_allclose(found, x_BLD[0, len(prompt) - 1 : -1], atol=1e-5)


def test_students_of_another_vocabulary_are_not_compared_token_by_token(class_):
    strange = dataclasses.replace(class_.family, tokenizer=types.SimpleNamespace(tokens=('a', 'b')))
    with pytest.raises(InputError, match='their vocabularies differ'):
        supervise(class_.attackers, strange, Attack('a', loss='features'), 'poe', class_.encoded)


def test_labels_of_a_part_of_the_vocabulary_have_no_other_temperature(class_):
    for candidates in (40, 1000):
        attack = Attack('a', loss='soft', arguments=(('temperature', 2.0), ('candidates', candidates)))
        if candidates == 40:
            with pytest.raises(InputError, match='40 candidates of 100 tokens'):
                supervise(class_.attackers, class_.family, attack, 'poe', class_.encoded)
        else:
            shown = supervise(class_.attackers, class_.family, attack, 'poe', class_.encoded)
            assert (shown.objective.temperature, shown.log_probs) == (2.0, 100)


def test_own_answers_that_nothing_can_be_learnt_from_are_an_error(class_):
    study = dataclasses.replace(class_.study, recipe=dataclasses.replace(class_.study.recipe, length=4))
    attackers = Attackers(study, class_.path, 0)
    shown = supervise(attackers, class_.family, Attack('gkd', loss='on_policy'), 'poe', class_.encoded)
    with pytest.raises(InputError, match=r"taught by 'poe', answers in more than recipe\.length = 4"):
        shown.fresh(class_.family.params, 0)


def test_a_selection_cannot_be_asked(class_):
    chosen = dataclasses.replace(class_.study.experiment, selections=(Selection('one', 'plain', 'first'),))
    attack = Attack('gkd', loss='on_policy')
    study = dataclasses.replace(class_.study, experiment=chosen, attacks=(attack,), clean='one')
    with pytest.raises(ConfigError, match='selections and rewrites cannot be asked'):
        check(study)
