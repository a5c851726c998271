"""Eight CPU devices in every test process, before a backend starts; and what a stranger's first run needs."""

from __future__ import annotations

import jax
import pytest

jax.config.update('jax_num_cpu_devices', 8)


@pytest.fixture(scope='session')
def smollm2(tmp_path_factory) -> dict[str, str]:
    """Variables of a process that finds a random model in its cache under SmolLM2's name."""
    from tests import tiny

    cache = tmp_path_factory.mktemp('cache')
    tiny.write_smollm2(cache)
    return tiny.environment(cache)


@pytest.fixture(scope='session')
def students(tmp_path_factory) -> list[str]:
    """Directories of two tiny random students, which nobody changes."""
    from tests import studies

    return studies.write_students(tmp_path_factory.mktemp('students'))
