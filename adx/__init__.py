"""adx: anti-distillation for language models, in JAX. Importing it starts no device backend."""

from adx.datasets import CompetitionMath, Gsm8k, Jsonl, Mmlu
from adx.decoding.engine import DecodeConfig
from adx.defences import (
    Antidistillation,
    Chain,
    CrossModelHard,
    CrossModelReweight,
    CrossModelSoft,
    CrossModelWeighted,
    Permutation,
    ProductOfExperts,
    Undefended,
)
from adx.experiment import Arm, Derivative, Experiment, MeshShape, ModelSource
from adx.policy import Customer, Policy, Terms
from adx.selection import Selection
from adx.session import Run, decode, load, prepare
from adx.types import Sampling

__all__ = [
    'Antidistillation',
    'Arm',
    'Chain',
    'CompetitionMath',
    'CrossModelHard',
    'CrossModelReweight',
    'CrossModelSoft',
    'CrossModelWeighted',
    'Customer',
    'DecodeConfig',
    'Derivative',
    'Experiment',
    'Gsm8k',
    'Jsonl',
    'MeshShape',
    'Mmlu',
    'ModelSource',
    'Permutation',
    'Policy',
    'ProductOfExperts',
    'Run',
    'Sampling',
    'Selection',
    'Terms',
    'Undefended',
    'decode',
    'load',
    'prepare',
]
