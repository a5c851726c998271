"""adx: anti-distillation for language models, in JAX.

Importing it loads nothing and starts no device backend: a name brings its module along when it is first used.
"""

import importlib
from typing import Any

_HOMES = {
    'adx.datasets': ('CompetitionMath', 'Gsm8k', 'Jsonl', 'Mmlu'),
    'adx.decoding.engine': ('DecodeConfig',),
    'adx.defences': (
        'Antidistillation', 'Bank', 'Budget', 'Chain', 'Controller', 'CrossModelHard', 'CrossModelReweight',
        'CrossModelSoft', 'CrossModelWeighted', 'EntropyGate', 'EqualKl', 'Permutation', 'ProbabilityFloor',
        'ProductOfExperts', 'Schedule', 'Undefended',
    ),
    'adx.experiment': ('Arm', 'Derivative', 'Experiment', 'MeshShape', 'ModelSource'),
    'adx.policy': ('Customer', 'Policy', 'Terms'),
    'adx.selection': ('Selection',),
    'adx.session': ('Run', 'decode', 'load', 'prepare'),
    'adx.types': ('Sampling',),
}  # fmt: skip
_HOME = {name: home for home, names in _HOMES.items() for name in names}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f'adx has no {name!r}; it has {__all__}')
    value = globals()[name] = getattr(importlib.import_module(_HOME[name]), name)
    return value


def __dir__() -> list[str]:
    return __all__
