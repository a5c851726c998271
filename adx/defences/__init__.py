"""The menu of token-level defences (adversarial decoding)."""

from adx.defences.antidistillation import Antidistillation
from adx.defences.chain import Chain
from adx.defences.cross_model import CrossModelHard, CrossModelReweight, CrossModelSoft, CrossModelWeighted
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
}
