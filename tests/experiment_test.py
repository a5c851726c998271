"""Experiments: JSON there and back, overrides, the hash, and what check refuses."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import re

import pytest

from adx import study
from adx.defences import (
    Bank,
    Budget,
    Chain,
    Controller,
    CrossModelHard,
    CrossModelReweight,
    CrossModelSoft,
    CrossModelWeighted,
    EntropyGate,
    EqualKl,
    Permutation,
    ProductOfExperts,
    Undefended,
)
from adx.errors import ConfigError
from adx.experiment import (
    Arm,
    Derivative,
    check,
    experiment_hash,
    from_json,
    holdout,
    override,
    sweep,
    to_json,
    wants_directions,
)
from adx.selection import Selection
from adx.types import Sampling, Stateless
from launch.config import load_config

CONFIGS = sorted(path for path in pathlib.Path('configs').glob('*.py') if not path.name.startswith('_'))
BASE = load_config('configs/demo.py')


def with_arm(**fields):
    return dataclasses.replace(BASE, arms=(dataclasses.replace(BASE.arms[1], **fields),))


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_every_config_checks_and_round_trips(path):
    config = load_config(str(path))
    (study.check if isinstance(config, study.Study) else check)(config)
    written = to_json(config, study.REGISTRY)
    assert from_json(written, study.REGISTRY) == config
    assert from_json(json.loads(json.dumps(written)), study.REGISTRY) == config


CROSS = (CrossModelHard(), CrossModelWeighted(), CrossModelSoft(), CrossModelReweight())
WRAPPED = (Budget(CrossModelSoft(), 0.1), Chain((ProductOfExperts(0.5), CrossModelSoft())))


@pytest.mark.parametrize('rule', [*CROSS, *WRAPPED], ids=str)
def test_a_cross_model_rule_takes_the_published_candidates_where_none_are_stated(rule):
    assert Arm('x', rule).sampling == Sampling(0.7, top_k=20, top_p=0.95)
    stated = Sampling(0.7, top_p=0.95)
    assert Arm('x', rule, stated).sampling == dataclasses.replace(Arm('x', rule), sampling=stated).sampling == stated


def test_other_rules_take_the_nucleus_alone():
    for rule in (Undefended(), ProductOfExperts(0.5), Permutation(ProductOfExperts(0.5))):
        assert Arm('x', rule).sampling == Sampling(0.7, top_p=0.95)
    assert Arm('x').sampling.top_k == 0


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_every_config_s_command_names_the_stages_that_it_wants(path):
    config = load_config(str(path))
    base = getattr(config, 'experiment', config)
    wanted = {
        'prepare': wants_directions(base) or getattr(config, 'wants_holdout', False),
        'select': bool(base.selections), 'rewrite': bool(base.rewrites),
        'distil': isinstance(config, study.Study) and len(config.arms) > 1,  # with one there is nothing to compare
    }  # fmt: skip
    found = re.search(r'^Command:(.*?)^\w+:', path.read_text(), re.MULTILINE | re.DOTALL)
    assert found
    stages = set(re.findall(r'\w+', ' '.join(re.findall(r'--stages=([\w,]+)', found[1]))))
    assert 'launch.run' not in found[1] or {name for name, needed in wanted.items() if needed} == stages & set(wanted)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'teacher': {'type': 'model'}}, "ModelSource lacks .'source'."),
        ({'sed': 1}, "Did you mean 'seed'"),
        ({'type': 'x'}, 'unknown type'),
    ],
)
def test_from_json_names_what_is_wrong(change, message):
    with pytest.raises(ConfigError, match=message):
        from_json(to_json(BASE) | change)


def test_override_reaches_nested_fields_and_tuples():
    changed = override(
        BASE, ['decode.slots=8', 'arms.1.defence.gamma=1', 'arms.plain.sampling.top_p=0.5', 'decode.buckets=[8, 16]']
    )
    assert changed.decode.slots == 8
    assert changed.arms[1].defence.gamma == 1.0
    assert isinstance(changed.arms[1].defence.gamma, float)
    assert changed.arms[0].sampling.top_p == 0.5
    assert changed.decode.buckets == (8, 16)
    assert override(changed, []) == changed


@pytest.mark.parametrize(
    ('assignment', 'message'),
    [
        ('seed', 'has no "="'),
        ('sed=1', "Did you mean 'seed'"),
        ('decode.slotz=1', "Did you mean 'slots'"),
        ('arms.plan.name=x', "Did you mean 'plain'"),
        ('arms.9.name=x', "no entry '9'"),
        ('seed.x=1', 'below a plain value'),
        ('seed=one', 'holds a int'),
        ('arms.plain=x', 'holds a Arm'),
        ('decode.buckets=[8, "x"]', 'holds a int'),
    ],
)
def test_override_names_what_is_wrong(assignment, message):
    with pytest.raises(ConfigError, match=message):
        override(BASE, [assignment])


def test_a_sweep_puts_one_arm_per_value_in_the_place_of_the_arm():
    permuted = Arm('permuted', Permutation(ProductOfExperts(gamma=0.5)))
    base = dataclasses.replace(BASE, arms=(Arm('plain'), Arm('poe', ProductOfExperts(gamma=0.3)), permuted))
    swept = sweep(
        base,
        ['arms.poe.defence.gamma=0.1,1', 'arms.poe.sampling.temperature=0.5,1', 'arms.2.defence.rule.gamma=0.02,0.05'],
    )
    grid = [(arm.name, arm.defence.gamma, arm.sampling.temperature) for arm in swept.arms[1:5]]
    assert grid == [
        ('poe.gamma=0.1,temperature=0.5', 0.1, 0.5),
        ('poe.gamma=0.1,temperature=1', 0.1, 1.0),
        ('poe.gamma=1,temperature=0.5', 1.0, 0.5),
        ('poe.gamma=1,temperature=1', 1.0, 1.0),
    ]
    assert all(isinstance(number, float) for _, *numbers in grid for number in numbers)
    assert [swept.arms[0], *swept.arms[5:]] == [
        Arm('plain'),
        Arm('permuted.gamma=0.02', Permutation(ProductOfExperts(gamma=0.02))),
        Arm('permuted.gamma=0.05', Permutation(ProductOfExperts(gamma=0.05))),
    ]
    check(swept)
    assert from_json(json.loads(json.dumps(to_json(swept)))) == swept
    assert experiment_hash(swept) != experiment_hash(base)
    assert sweep(base, []) == base
    permuted = dataclasses.replace(base, arms=(Arm('control', EqualKl(permuted.defence, permuted.defence.rule)),))
    both = sweep(permuted, ['arms.control.defence.rule.rule.gamma+defence.reference.gamma=0.1,0.2']).arms
    assert [(arm.name, arm.defence.rule.rule.gamma, arm.defence.reference.gamma) for arm in both] == [
        ('control.gamma=0.1', 0.1, 0.1), ('control.gamma=0.2', 0.2, 0.2),
    ]  # fmt: skip
    longest = Selection('longest', 'poe', 'max_length')
    follows = sweep(dataclasses.replace(base, selections=(longest,)), ['arms.poe.defence.gamma=0.1,1']).selections
    assert [(one.name, one.arm) for one in follows] == [
        ('longest.gamma=0.1', 'poe.gamma=0.1'), ('longest.gamma=1', 'poe.gamma=1'),
    ]  # fmt: skip
    joins = sweep(base, ['arms.poe.defence.join.how=min,max']).arms[1:3]
    assert [arm.defence.join.how for arm in joins] == ['min', 'max']


@pytest.mark.parametrize(
    ('assignment', 'message'),
    [
        ('arms.plain.sampling.top_p', 'is not allowed; write --sweep arms'),
        ('arms.plain.sampling.top_p=', 'is not allowed; write --sweep arms'),
        ('seed=1,2', 'is not allowed; write --sweep arms'),
        ('arms.plain.sampling.top_p+name=0.5', 'is not allowed; write --sweep arms'),
        ('arms.plain.sampling.top_p+sampling.topk=0.5', "Did you mean 'top_k'"),
        ('arms.plain.name=a,b', "with an arm of .'plain'"),
        ('arms.plan.sampling.top_p=0.5', "--sweep arms.plan.sampling.top_p: no entry 'plan'.*Did you mean 'plain'"),
        ('arms.plain.sampling.topp=0.5', "Did you mean 'top_p'"),
        ('arms.plain.sampling.top_p=0.5,half', r"--sweep arms.plain.sampling.top_p='half': the field holds a float"),
        ('arms.plain.sampling=1,2', 'holds a Sampling'),
    ],
)
def test_sweep_names_what_is_wrong(assignment, message):
    with pytest.raises(ConfigError, match=message):
        sweep(BASE, [assignment])


@pytest.mark.parametrize('values', ['0.5,0.5', '0.5,2', 'nan'])
def test_check_refuses_settings_of_a_sweep(values):
    with pytest.raises(ConfigError, match='arm'):
        check(sweep(BASE, [f'arms.plain.sampling.top_p={values}']))


def test_hash_leaves_out_how_a_run_is_carried_out():
    for operational in ('decode.slots=8', 'mesh.data=2'):
        assert experiment_hash(override(BASE, [operational])) == experiment_hash(BASE)
    for other in ('seed=1', 'decode.record=none', 'arms.1.defence.gamma=0.5'):
        assert experiment_hash(override(BASE, [other])) != experiment_hash(BASE)


@pytest.mark.parametrize('disclosure', ['', 'none:', 'none: ', 'secret'])
def test_a_defended_run_states_its_disclosure(disclosure):
    with pytest.raises(ConfigError, match='disclosure'):
        check(dataclasses.replace(BASE, disclosure=disclosure))
    check(dataclasses.replace(BASE, disclosure=disclosure, arms=BASE.arms[:1]))
    check(dataclasses.replace(BASE, disclosure='none: a private study'))


@pytest.mark.parametrize('around', [Budget, Bank, Controller, lambda rule: Chain((rule, EqualKl(rule, rule)))])
def test_a_price_is_refused_at_temperature_0(around):
    rule = around(ProductOfExperts())
    check(with_arm(defence=rule, sampling=Sampling(temperature=0.1)))
    with pytest.raises(ConfigError, match=r'arm .*: [A-Z][A-Za-z]+ holds the KL a token at a price'):
        check(with_arm(defence=rule, sampling=Sampling(temperature=0.0)))
    check(with_arm(defence=EntropyGate(ProductOfExperts()), sampling=Sampling(temperature=0.0)))


@pytest.mark.parametrize(
    'experiment',
    [
        with_arm(defence=ProductOfExperts(gamma=float('nan'))),
        with_arm(defence=ProductOfExperts(gamma='half')),
        with_arm(sampling=Sampling(temperature=-1.0)),
        dataclasses.replace(BASE, arms=BASE.arms * 2),
        dataclasses.replace(BASE, proxies=()),
        dataclasses.replace(BASE, samples=0),
        dataclasses.replace(BASE, dtype='float23'),
        dataclasses.replace(BASE, stop_strings=('',)),
        dataclasses.replace(BASE, stop_strings=(3,)),
        dataclasses.replace(BASE, protected_spans=('boxd',)),
        dataclasses.replace(BASE, max_new_tokens=BASE.decode.cache_length + 1),
        *(
            dataclasses.replace(BASE, derivative=derivative)
            for derivative in (
                Derivative(prompts=-1),
                Derivative(samples=0),
                Derivative(samples=True),
                Derivative(max_new_tokens=0),
                Derivative(directions=0),
                Derivative(scale='none'),
                Derivative(method='exakt'),
                Derivative(method='difference', eps=0.0),
                Derivative(method='difference', directions=2),
                Derivative(method='difference', dtype='float64'),
                Derivative(sampling=Sampling(temperature=-1.0)),
            )
        ),
    ],
)
def test_check_refuses(experiment):
    with pytest.raises(ConfigError):
        check(experiment)


class Slope(Stateless):
    wants_tangents = True


def with_slope(**fields):
    return dataclasses.replace(BASE, arms=(dataclasses.replace(BASE.arms[0], defence=Slope()),), **fields)


class NoSplits:
    name = 'questions'


@pytest.mark.parametrize(
    ('fields', 'message'),
    [
        ({'proxies': ()}, 'needs a proxy'),
        ({'split': 'holdout'}, "split = 'holdout'"),
        ({'dataset': NoSplits()}, "'questions' has no splits"),
        ({'derivative': Derivative(max_new_tokens=10**6)}, 'holdout traces of `derivative`: max_new_tokens'),
    ],
)
def test_a_rule_with_derivatives_needs_proxies_and_holdout_traces(fields, message):
    check(with_slope(derivative=Derivative(method='difference', dtype='float16')))
    with pytest.raises(ConfigError, match=message):
        check(with_slope(**fields))


def test_holdout_traces_are_the_undefended_teachers():
    held = holdout(with_slope(derivative=Derivative(prompts=5, samples=3, max_new_tokens=7)))
    assert (held.split, held.limit, held.samples, held.max_new_tokens) == ('holdout', 5, 3, 7)
    assert (held.proxies, [arm.name for arm in held.arms], held.decode.record) == ((), ['plain'], 'none')
    other = dataclasses.replace(BASE, derivative=Derivative(5, 3, 7, scale='raw', method='difference'))
    assert experiment_hash(holdout(other)) == experiment_hash(held)  # how g is used changes no trace


def test_entries_of_a_tuple_that_was_empty_are_checked():
    assert override(BASE, ['decode.short_caches=[64, 128]']).decode.short_caches == (64, 128)
    assert override(BASE, ['stop_strings=("end",)']).stop_strings == ('end',)
    pairs = override(BASE, ["prompting.template_arguments=[['thinking', False]]"]).prompting.template_arguments
    assert pairs == (('thinking', False),)
    with pytest.raises(ConfigError, match=r'DecodeConfig.short_caches = \(64.5,\) is not allowed; .* tuple\[int'):
        override(BASE, ['decode.short_caches=(64.5,)'])
    with pytest.raises(ConfigError, match=r'Experiment\.stop_strings'):
        override(BASE, ['stop_strings=(1,)'])
