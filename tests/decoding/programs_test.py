"""Engines of the same models and shapes share what is compiled, and nothing else."""

from __future__ import annotations

import dataclasses

import fakes
import pytest

from adx.decoding.engine import Engine
from adx.defences import ProductOfExperts


def decode(engine):
    requests = fakes.make_requests(6, ProductOfExperts(0.5))
    return {str(done.id): done.tokens for done in engine.generate(requests)}


def test_a_second_engine_compiles_nothing_and_keeps_its_own_weights():
    ensemble, weights = fakes.make_ensemble()
    first = decode(engine := Engine(ensemble, weights, fakes.DECODE))
    compiled = engine.compiled_programs()
    halved = weights._replace(teacher={path: x / 2 for path, x in weights.teacher.items()})
    again, other = (Engine(fakes.make_ensemble()[0], one, fakes.DECODE, seed=0) for one in (weights, halved))
    assert decode(again) == first
    assert decode(other) != first
    assert engine.compiled_programs() == again.compiled_programs() == compiled > 0


@pytest.mark.parametrize(('field', 'value'), [('slots', 6), ('chunk', 2), ('record', 'top'), ('cache_length', 30)])
def test_other_shapes_have_programs_of_their_own(field, value):
    ensemble, weights = fakes.make_ensemble()
    other = Engine(ensemble, weights, dataclasses.replace(fakes.DECODE, **{field: value}))
    assert other.programs is not Engine(ensemble, weights, fakes.DECODE).programs


def test_other_models_and_places_have_programs_of_their_own():
    def programs(count=2, **changed):
        teacher = dataclasses.replace(fakes.TEACHER, **changed)
        ensemble, weights = fakes.make_ensemble(teacher=teacher, count=count)
        return Engine(ensemble, weights, fakes.DECODE).programs

    one = programs()
    assert programs() is one
    assert programs(count=1) is not one
    assert programs(norm_eps=1e-6) is not one
    ensemble, weights = fakes.make_ensemble()
    layout = ensemble.teacher_layout
    split = dataclasses.replace(ensemble, teacher_layout=dataclasses.replace(layout, rules={**layout.rules, 'Q': ()}))
    assert Engine(split, weights, fakes.DECODE).programs is not one
