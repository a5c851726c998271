"""The menu of token-level defences (adversarial decoding)."""

from adx.defences.antidistillation import Antidistillation
from adx.defences.budget import Bank, Budget
from adx.defences.chain import Chain
from adx.defences.cross_model import CrossModelHard, CrossModelReweight, CrossModelSoft, CrossModelWeighted
from adx.defences.equal_kl import EqualKl
from adx.defences.gates import EntropyGate, ProbabilityFloor
from adx.defences.pacing import Controller, Schedule
from adx.defences.permutation import Permutation
from adx.defences.product_of_experts import ProductOfExperts
from adx.defences.undefended import Undefended

MENU: dict[str, type] = {
    'undefended': Undefended,
    'product_of_experts': ProductOfExperts,
    'cross_model_hard': CrossModelHard,
    'cross_model_weighted': CrossModelWeighted,
    'cross_model_soft': CrossModelSoft,
    'cross_model_reweight': CrossModelReweight,
    'antidistillation': Antidistillation,
    'permutation': Permutation,
    'chain': Chain,
    'budget': Budget,
    'bank': Bank,
    'entropy_gate': EntropyGate,
    'probability_floor': ProbabilityFloor,
    'schedule': Schedule,
    'controller': Controller,
    'equal_kl': EqualKl,
}
