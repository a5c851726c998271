"""Reads configs: Python files with experiment() -> Experiment, or study() -> Study."""

from __future__ import annotations

import importlib.util
import pathlib
from typing import Any

from adx.errors import AdxError, ConfigError


def load_experiment(path: str, seed: int | None = None) -> Any:
    """The Experiment of a config, or that of its study; given a seed, as the study's workdir for it has it."""
    from adx.study import Study

    found = load_config(path)
    if not isinstance(found, Study):
        if seed is not None:
            raise ConfigError(f'--seed={seed}: {path} defines an experiment, and seeds are those of a study')
        return found
    if seed is None:
        return found.experiment
    if seed not in found.seeds:
        raise ConfigError(f'--seed={seed} is none of the seeds {found.seeds} of {path}')
    return found.of_seed(seed)


def load_config(path: str) -> Any:
    """The Experiment or Study that a config file defines. Raises ConfigError."""
    from adx.experiment import Experiment  # it imports jax, and a wrong flag should not wait for that
    from adx.study import Study

    file = pathlib.Path(path)
    if not file.is_file():
        there = sorted(str(p) for p in pathlib.Path('configs').glob('*.py') if not p.name.startswith('_'))
        raise ConfigError(f'--config={path} does not exist; configs here: {there}')
    spec = importlib.util.spec_from_file_location(f'adx_config_{file.stem}', file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        found = module.study() if hasattr(module, 'study') else module.experiment()
    except AdxError:
        raise
    except Exception as error:
        raise ConfigError(f'--config={path} cannot be read: {type(error).__name__}: {error}') from error
    if not isinstance(found, Experiment | Study):
        kind = type(found).__name__
        raise ConfigError(
            f'--config={path} returned a {kind}; experiment() must return an Experiment, or study() a Study'
        )
    return found
