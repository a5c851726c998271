"""What holds for every transform of the menu, proved once for all."""

from __future__ import annotations

import dataclasses
import json

import pytest
from lessons_fakes import lessons, resources

from adx import experiment
from adx.attacks import MENU, Attack
from adx.attacks.attack import step_name
from adx.attacks.filters import BestOfK, Keep
from adx.attacks.mixing import Reweight
from adx.attacks.queries import AugmentQueries
from adx.attacks.rewrites import Reconstruct
from adx.lessons import RESOURCES, Transform
from adx.study import REGISTRY

ALL = [(name, cls()) for name, cls in MENU.items()] + [
    ('keep', Keep(3)),
    ('best_of_k', BestOfK(2, 'self_consistency')),
    ('augment_queries', AugmentQueries('self_made', 2, 2)),
    ('reweight', Reweight('random')),
    ('reconstruct', Reconstruct('gold')),
]
WRONG = {
    'deduplicate': {'overlap': 0.0}, 'perplexity_filter': {'keep': 1.5}, 'best_of_k': {'k': 1}, 'keep': {'traces': 0},
    'prefill': {'text': ' '}, 'augment_queries': {'how': 'paraphrases'}, 'accounts': {'count': 1},
    'mix_clean': {'fraction': 0}, 'reweight': {'temperature': float('nan')}, 'paraphrase': {'instruction': ''},
    'reconstruct': {'answer': 'golden'}, 'strip_lines': {'pattern': '('}, 'filter_lines': {'caught': 0.0},
}  # fmt: skip
every = pytest.mark.parametrize(('name', 'transform'), ALL, ids=lambda value: value if isinstance(value, str) else '')


def given():
    return lessons(6, 4)


@every
def test_is_a_frozen_option_under_its_own_name_that_survives_json(name, transform):
    assert isinstance(transform, Transform)
    assert step_name(transform) == name
    transform.check()
    assert hash(dataclasses.replace(transform)) == hash(transform)
    with pytest.raises(dataclasses.FrozenInstanceError):
        transform.anything = 1
    attack = Attack('a', (transform,), arguments=())
    written = json.loads(json.dumps(experiment.to_json(attack, REGISTRY)))
    assert experiment.from_json(written, REGISTRY) == attack


@every
def test_says_what_it_does_without_a_teacher(name, transform):
    assert 'own_only: ' in type(transform).__doc__


@every
def test_nothing_comes_of_nothing_but_what_is_added(name, transform):
    found, tally = transform.apply([], resources().only(transform.needs))
    tally.check(0, len(found))
    assert tally.step == name
    assert (len(found) > 0) == (name == 'mix_clean')


@every
def test_tallies_add_up_and_the_given_lessons_stay_as_they_are(name, transform):
    before = given()
    found, tally = transform.apply(before, resources().only(transform.needs))
    tally.check(len(before), len(found))
    assert before == given()
    assert len({x.id for x in found}) == len(found)
    json.dumps(dataclasses.asdict(tally))


@every
def test_is_the_same_for_the_same_seed_whatever_the_order_of_the_lessons(name, transform):
    runs = [transform.apply(order, resources().only(transform.needs)) for order in (given(), given(), given()[::-1])]
    assert runs[0] == runs[1]
    assert sorted(runs[0][0], key=lambda x: x.id) == sorted(runs[2][0], key=lambda x: x.id)
    assert runs[0][1] == runs[2][1]


@every
@pytest.mark.parametrize('count', [0, 6])
def test_names_a_resource_that_is_missing(name, transform, count):
    assert set(transform.needs) <= set(RESOURCES)
    for resource in transform.needs:
        held = dataclasses.replace(resources(), **{resource: None})
        with pytest.raises(ValueError, match=f'{name} needs resources.{resource} and') as error:
            transform.apply(given()[: 4 * count], held)
        assert '\n' not in str(error.value)


@every
def test_reads_no_resource_that_it_does_not_declare(name, transform):
    def reads(**held):
        return transform.apply(given(), dataclasses.replace(resources(), **held))

    others = {resource: None for resource in RESOURCES if resource not in transform.needs}
    assert reads() == reads(**others)


@every
def test_what_it_has_without_a_teacher_is_its_own(name, transform):
    held = dataclasses.replace(resources().only(transform.needs), query=None)
    prompts = [x.prompt for x in lessons(3)]
    found = transform.own_only(held, prompts)
    assert found is None or (found and {x.source for x in found} <= {'own', 'clean'})
    assert found == transform.own_only(held, prompts)
    makes = {'mix_clean', 'paraphrase', 'reconstruct', 'augment_queries'}
    assert (found is not None) == (name in makes)


@pytest.mark.parametrize('name', WRONG)
def test_check_names_field_value_and_what_is_allowed(name):
    [field] = WRONG[name]
    with pytest.raises(ValueError, match=f'{MENU[name].__name__}.{field} = '):
        MENU[name](**WRONG[name]).check()


def test_every_option_that_has_fields_is_checked():
    assert {name for name, cls in MENU.items() if dataclasses.fields(cls)} == set(WRONG)
