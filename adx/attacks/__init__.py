"""The menu of what attackers do to their data. An Attack composes them and names the loss."""

from adx.attacks.attack import OF_OWN_MODEL, Attack, Prepared, Record, Training
from adx.attacks.filters import BestOfK, CorrectnessFilter, Deduplicate, Keep, PerplexityFilter
from adx.attacks.mixing import MixClean, Reweight, ShuffledPrompts
from adx.attacks.queries import Accounts, AugmentQueries, Prefill
from adx.attacks.rewrites import AnswerOnly, Canonicalise, Paraphrase, Reconstruct
from adx.attacks.unmark import FilterLines, StripLines

__all__ = ['MENU', 'OF_OWN_MODEL', 'Attack', 'Prepared', 'Record', 'Training']

MENU: dict[str, type] = {
    'deduplicate': Deduplicate,
    'perplexity_filter': PerplexityFilter,
    'correctness_filter': CorrectnessFilter,
    'keep': Keep,
    'best_of_k': BestOfK,
    'prefill': Prefill,
    'augment_queries': AugmentQueries,
    'accounts': Accounts,
    'mix_clean': MixClean,
    'reweight': Reweight,
    'shuffled_prompts': ShuffledPrompts,
    'paraphrase': Paraphrase,
    'canonicalise': Canonicalise,
    'answer_only': AnswerOnly,
    'reconstruct': Reconstruct,
    'strip_lines': StripLines,
    'filter_lines': FilterLines,
}
