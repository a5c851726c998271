"""Programs are compiled from shapes while weights are read, and a run then compiles none of them."""

from __future__ import annotations

import dataclasses

import jax
import pytest

from adx import ahead
from adx.decoding.engine import Engine
from adx.decoding.ensemble import Weights
from adx.decoding.programs import programs
from adx.experiment import Arm, MeshShape
from adx.generation import make_requests, read_prompts
from adx.loading import blueprint, load_models
from adx.mesh import make_mesh
from launch.config import load_config
from tests import fakes, tiny

MISSES, HITS = '/jax/compilation_cache/cache_misses', '/jax/compilation_cache/cache_hits'


@pytest.fixture
def events():
    """What the persistent cache says, with every program kept."""
    seen: list[str] = []
    before = jax.config.jax_persistent_cache_min_compile_time_secs
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)
    listen = lambda event, **_: seen.append(event)  # noqa: E731
    jax.monitoring.register_event_listener(listen)
    yield seen
    jax.monitoring.unregister_event_listener(listen)
    jax.config.update('jax_persistent_cache_min_compile_time_secs', before)


def nothing_is_compiled(events, ensemble, weights, config, requests) -> bool:
    """Neither in the process that compiled ahead, whose engines share programs, nor in another, which has the cache."""
    for expected in (set(), {HITS}):
        events.clear()
        assert len(list(Engine(ensemble, weights, config).generate(requests))) == len(requests) > 0
        if {HITS, MISSES} & set(events) != expected:
            return False
        programs.cache_clear()
    return True


@pytest.mark.parametrize('mesh', [(1, 1, 1), pytest.param((2, 1, 1), marks=pytest.mark.slow)])
def test_what_was_compiled_from_shapes_is_what_runs(events, mesh):
    ensemble, weights = fakes.make_ensemble(make_mesh(*mesh))
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), weights)
    config = dataclasses.replace(fakes.DECODE, chunk=5, cache_length=25)  # as no other test has it
    requests = fakes.make_requests()
    Engine(ensemble, Weights(*shapes), config).compile(requests)
    assert MISSES in events
    assert nothing_is_compiled(events, ensemble, weights, config, requests)


@pytest.mark.parametrize('mesh', [MeshShape(), MeshShape(model=2)])
def test_the_shapes_are_those_of_the_weights(tmp_path, mesh):
    experiment = load_config(tiny.write_config(tmp_path / 'config.py', tiny.write_teacher(tmp_path / 'teacher')))
    experiment = dataclasses.replace(experiment, mesh=mesh, dtype='bfloat16')
    plan = blueprint(experiment)
    told, read = ahead.abstract_weights(plan.ensemble), load_models(experiment, plan).weights
    assert jax.tree.structure(told) == jax.tree.structure(read)
    for shape, x in zip(jax.tree.leaves(told), jax.tree.leaves(read), strict=True):
        assert (shape.shape, shape.dtype) == (x.shape, x.dtype)
        assert shape.sharding.is_equivalent_to(x.sharding, x.ndim)


def test_what_cannot_be_compiled_is_left_to_the_run(tmp_path, monkeypatch):
    experiment = load_config(tiny.write_config(tmp_path / 'config.py', tiny.write_teacher(tmp_path / 'teacher')))
    plan = blueprint(experiment)
    made = make_requests(experiment, read_prompts(experiment), plan.tokenizer)
    asked = []

    def fail(*given):
        asked.append(given)
        raise MemoryError

    monkeypatch.setattr(ahead, 'compile_programs', fail)
    with ahead.compiling(experiment, plan, list(made.requests.values())):
        assert not asked  # a CPU has other work
    monkeypatch.setattr(ahead, '_gains', lambda: True)
    with ahead.compiling(experiment, plan, list(made.requests.values())):
        pass
    assert len(asked) == 1
    wants = dataclasses.replace(experiment, arms=(Arm('sloped', fakes.Sloped()),))
    with ahead.compiling(wants, plan, list(made.requests.values())):
        pass
    assert len(asked) == 1


def test_prompts_longer_than_the_shortest_caches_are_compiled_for_the_next(events):
    ensemble, weights = fakes.make_ensemble()
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), weights)
    config = dataclasses.replace(fakes.DECODE, chunk=2, cache_length=26, short_caches=(6, 20))
    requests = fakes.make_requests(new=4)
    Engine(ensemble, Weights(*shapes), config).compile(requests)
    long = [one for one in requests if len(one.tokens) > 4]
    assert nothing_is_compiled(events, ensemble, weights, config, long)
