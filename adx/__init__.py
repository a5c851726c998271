"""adx: anti-distillation for language models, in JAX. Importing it starts no device backend."""

from adx.datasets import CompetitionMath, Gsm8k, Jsonl, Mmlu
from adx.decoding.engine import DecodeConfig
from adx.defences import (
    Antidistillation,
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
    ProbabilityFloor,
    ProductOfExperts,
    Schedule,
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
    'Bank',
    'Budget',
    'Chain',
    'CompetitionMath',
    'Controller',
    'CrossModelHard',
    'CrossModelReweight',
    'CrossModelSoft',
    'CrossModelWeighted',
    'Customer',
    'DecodeConfig',
    'Derivative',
    'EntropyGate',
    'EqualKl',
    'Experiment',
    'Gsm8k',
    'Jsonl',
    'MeshShape',
    'Mmlu',
    'ModelSource',
    'Permutation',
    'Policy',
    'ProbabilityFloor',
    'ProductOfExperts',
    'Run',
    'Sampling',
    'Schedule',
    'Selection',
    'Terms',
    'Undefended',
    'decode',
    'load',
    'prepare',
]
