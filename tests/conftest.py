"""Eight CPU devices in every test process, before a backend starts; and what a stranger's first run needs."""

from __future__ import annotations

import gc
import os
import tempfile

import hypothesis
import jax
import pytest

# How soon an example is done says how busy the machine is, and nothing about what is tested.
hypothesis.settings.register_profile('adx', deadline=None)
hypothesis.settings.load_profile('adx')
jax.config.update('jax_num_cpu_devices', 8)
# On busy cores eight CPU devices were seen to wait for each other for ever in collectives, but not where a program
# starts after the other's end.
jax.config.update('jax_cpu_enable_async_dispatch', False)
# Tests, and the processes that they start, build many models of one shape: a program is compiled once for all of them.
SECONDS = 0.2  # of compilation, from which a program is kept
if 'PYTEST_XDIST_WORKER' not in os.environ:  # workers inherit the environment of the process that starts them
    PROGRAMS = tempfile.TemporaryDirectory(prefix='adx_programs_')
    os.environ |= {
        'JAX_COMPILATION_CACHE_DIR': PROGRAMS.name,
        'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': str(SECONDS),
    }
jax.config.update('jax_compilation_cache_dir', os.environ['JAX_COMPILATION_CACHE_DIR'])
jax.config.update('jax_persistent_cache_min_compile_time_secs', SECONDS)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest test first: processes that share the files do not wait for it at the end."""
    items.sort(key=lambda item: 'study_test' not in item.nodeid)


@pytest.fixture(scope='module', autouse=True)
def forget_programs():
    """Programs of a module go with it: a process that keeps those of all of them grows to gigabytes, and every fork of
    it, which is how tests kill a run, copies its tables of pages.
    """
    from adx.decoding.programs import programs

    yield
    programs.cache_clear()
    jax.clear_caches()
    gc.collect()


@pytest.fixture(scope='session')
def smollm2(tmp_path_factory) -> dict[str, str]:
    """Variables of a process that finds a random model in its cache under SmolLM2's name."""
    from tests import tiny

    cache = tmp_path_factory.mktemp('cache')
    tiny.write_smollm2(cache)
    return tiny.environment(cache)


@pytest.fixture(scope='module')
def shared_trainers():
    """Studies of a module compile the training of like students once: a process of a user's has one study."""
    from adx import teaching

    kept = {}

    def trainer(model, mesh, recipe, *more):
        key = model.config, mesh, recipe, *more
        if key not in kept:
            kept[key] = made(model, mesh, recipe, *more)
        return kept[key]

    made = teaching.Trainer
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(teaching, 'Trainer', trainer)
        yield


@pytest.fixture(scope='session')
def students(tmp_path_factory) -> list[str]:
    """Directories of two tiny random students, which nobody changes."""
    from tests import studies

    return studies.write_students(tmp_path_factory.mktemp('students'))
