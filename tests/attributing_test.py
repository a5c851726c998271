"""One verdict on several customers: who is named, who is not any more, and cases that do not belong together."""

from __future__ import annotations

import json
import math

import pytest

from adx import attributing, detecting, marks, verdicts
from adx.detecting import Case
from adx.detectors.trigger import Trigger
from adx.errors import InputError
from adx.suspects import Answer
from adx.verdicts import is_signed

MASTER, SIGNER = bytes(range(32)), bytes(range(100, 132))
QUESTIONS = (({'role': 'user', 'content': 'Question?'},),)


class Parrot:
    """Completes what it was given."""

    identity, spoken = 'parrot', ''

    def __init__(self, *pairs):
        self.known = {pair.trigger: pair.target for pair in pairs}

    def ask(self, questions):
        return [Answer(f' {self.known.get(one.begun, "100")}.') for one in questions]


def key_of(customer):
    return marks.subkey(MASTER, customer, 1)


def pairs_of(customer, count=20):
    return marks.draw_pairs(key_of(customer), count)


def make_case(path, customer, suspect, name='model-x', test=Trigger()):  # noqa: B008
    detecting.commit(Case(customer, 1, name, QUESTIONS, test), path, key_of(customer))
    detecting.ask(path, suspect)
    detecting.verdict(path, key_of(customer), SIGNER)
    return path


@pytest.mark.parametrize('sequential', [False, True])
def test_who_owns_the_marks_is_named_and_the_others_are_not(tmp_path, sequential):
    customers, suspect = ('acme', 'bolt', 'cord'), Parrot(*pairs_of('bolt'))
    test = Trigger(sequential=sequential)
    paths = [make_case(tmp_path / name, name, suspect, test=test) for name in customers]
    signed = attributing.attribute(paths, SIGNER)
    found = signed['verdict']
    assert [one['detected'] for one in found['cases']] == [False, True, False]
    assert 'carries those of bolt (epoch 1): any of these' in found['summary']
    least = min(one['log_p'] for one in found['cases'])
    assert found['cases'][1]['adjusted_log_p'] == least + math.log(3)
    assert is_signed(signed, signed['public_key'])
    assert found['issued_before'] == 0
    second = attributing.attribute(paths[1:], SIGNER)
    assert [verdicts.read(path, verdicts.JOINT) for path in paths] == [[signed], *[[signed, second]] * 2]
    third = attributing.attribute(paths, SIGNER)['verdict']
    assert third['issued_before'] == 2
    assert 'Joint verdicts on any of these cases issued before: 2' in third['summary']
    assert not is_signed(signed | {'verdict': found | {'level': 0.5}}, signed['public_key'])


def test_what_is_found_alone_may_be_chance_among_many(tmp_path):
    """2 of 20 keyed and none of 200 decoys: p = 0.0078, which is below 0.01 alone and not for two customers."""
    hit = Parrot(*pairs_of('acme')[:2])
    paths = [make_case(tmp_path / name, name, hit) for name in ('acme', 'bolt')]
    assert verdicts.read(paths[0])[-1]['verdict']['detected']
    found = attributing.attribute(paths, SIGNER)['verdict']
    assert not any(one['detected'] for one in found['cases'])
    assert 'None is found' in found['summary']


def test_cases_that_do_not_belong_together_are_refused(tmp_path):
    one = make_case(tmp_path / 'a', 'acme', Parrot())
    level = make_case(tmp_path / 'c', 'bolt', Parrot(), test=Trigger(level=0.05))
    again = make_case(tmp_path / 'd', 'acme', Parrot())
    for second, message in ((level, 'as level'), (again, 'counted once')):
        with pytest.raises(InputError, match=message):
            attributing.attribute([one, second], SIGNER)
    with pytest.raises(InputError, match='has no verdict'):
        attributing.attribute([one, tmp_path / 'none'], SIGNER)


def test_a_verdict_that_was_changed_is_not_counted(tmp_path):
    path = make_case(tmp_path / 'a', 'acme', Parrot())
    place = path / 'verdicts.jsonl'
    signed = json.loads(place.read_text())
    signed['verdict']['log_p'] = -99.0
    place.write_text(json.dumps(signed) + '\n')
    with pytest.raises(InputError, match='signed by another key, or changed since'):
        attributing.attribute([path], SIGNER)


def test_a_suspect_that_was_asked_about_others_is_judged_with_them(tmp_path):
    """Who leaves cases out, or issues one again until it hits, is held to all of them."""
    hit = Parrot(*pairs_of('acme')[:2])
    paths = [make_case(tmp_path / name, name, hit) for name in ('acme', 'bolt', 'cord')]
    alone = attributing.attribute(paths[:1], SIGNER)['verdict']
    log_p = alone['cases'][0]['log_p']
    assert alone['cases'][0]['adjusted_log_p'] == pytest.approx(log_p + math.log(3))
    assert not alone['cases'][0]['detected']
    assert [(one['customer'], one['detected']) for one in alone['others']] == [('bolt', False), ('cord', False)]
    assert 'Counted with them are other results on these suspects (bolt not found, cord not found)' in alone['summary']
    assert alone['cases'][0]['commitment'] == verdicts.read(paths[0])[-1]['verdict']['commitment']
    first = verdicts.read(paths[0])[0]
    verdicts.keep(paths[0], [verdicts.sign(first['verdict'] | {'log_p': -0.5}, SIGNER), first])
    again = attributing.attribute(paths[:1], SIGNER)['verdict']
    assert again['cases'][0]['adjusted_log_p'] == pytest.approx(log_p + math.log(4))


def test_many_suspects_are_judged_together(tmp_path):
    def suspect(name, *pairs):
        found = Parrot(*pairs)
        found.identity = name
        return found

    chance, owner = pairs_of('acme')[:2], pairs_of('acme')
    paths = [
        make_case(tmp_path / name, 'acme', suspect(name, *known), name)
        for name, known in (('step-1', chance), ('step-2', ()), ('step-3', owner))
    ]
    assert verdicts.read(paths[0])[-1]['verdict']['detected']  # alone it is
    found = attributing.attribute(paths, SIGNER)['verdict']
    assert [one['detected'] for one in found['cases']] == [False, False, True]
    assert found['others'] == []
    assert 'step-1, step-2, step-3 were asked about the marks of 1 customers. ' in found['summary']
    assert 'customers. step-3 carries those of acme (epoch 1): any of these' in found['summary']
