"""Response-level selection: of a prompt's k candidates the one that a rule keeps.

Proxies score the candidates in batches.

Harm is minus <g, grad NLL> = <g, grad log p(completion)>, a mean over its tokens, where g is the direction that raises
the proxy's holdout loss: a gradient step of size eta on the trace changes that loss by eta * harm to first order, times
the deviation by which `Derivative.scale` divides g.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from adx import losses
from adx.aggregation import Aggregation
from adx.batching import Batch, Example, batches, map_rows, positions
from adx.decoding.ensemble import Ensemble, Group
from adx.fields import hint
from adx.grading import stated_answer
from adx.mesh import Layout
from adx.models.transformer import Model, Params
from adx.types import NAMING, Array, check_choice, is_name

HOWS = ('first', 'random', 'max_length', 'max_nll', 'max_harm')
CONTROLS = ('first', 'random')  # no defence: they look at nothing
ROWS = 8  # traces of one scoring batch, per piece of the mesh that rows are split into
Grade = Callable[[str, str], bool]


@dataclasses.dataclass(frozen=True)
class Selection:
    """Keeps one of an arm's samples of each prompt; `name` is its setting where traces are shown or released.

    how: 'first' and 'random' are CONTROLS; 'max_length' in tokens; 'max_nll' is the mean completion NLL under the
    proxies, 'max_harm' the module's harm. correctness_matched: only among the candidates that state candidate 0's
    answer, so that the arm's accuracy stays what it is. join: of the proxies' scores.
    """

    name: str
    arm: str
    how: str
    correctness_matched: bool = False
    join: Aggregation = Aggregation()

    @property
    def score(self) -> str:
        """What the proxies are asked for: 'nll', 'harm' or ''."""
        return {'max_nll': 'nll', 'max_harm': 'harm'}.get(self.how, '')

    @property
    def is_defence(self) -> bool:
        return self.how not in CONTROLS

    def check(self) -> None:
        """Raises ValueError naming the field, its value and what is allowed."""
        check_choice('Selection.how', self.how, HOWS)
        self.join.check()

    def choose(self, kept: Sequence[bool], scores: Sequence[float], key: int) -> int:
        """The index of one of the `kept` candidates, the lowest among ties. key: 64 random bits of the prompt."""
        indices = [i for i, keep in enumerate(kept) if keep]
        if self.how == 'random':
            return indices[key % len(indices)]
        return indices[0] if self.how == 'first' else max(indices, key=lambda i: (scores[i], -i))


def check_selections(selections: Sequence[Selection], arms: Sequence[str], has_proxies: bool, method: str) -> None:
    """Raises ValueError naming the selection. method: by which a derivative is taken."""
    taken = list(arms)
    for selection in selections:
        name = selection.name
        if not is_name(name) or name in taken:
            raise ValueError(f'selections has one named {name!r}; it needs a name that is not of {taken}, {NAMING}')
        taken.append(name)
        if selection.arm not in arms:
            raise ValueError(
                f'selection {name!r} is of the arm {selection.arm!r} and there are {[*arms]}{hint(selection.arm, arms)}'
            )
        try:
            selection.check()
        except ValueError as error:
            raise ValueError(f'selection {name!r}: {error}') from error
        if selection.score and not has_proxies:
            raise ValueError(f'selection {name!r} is scored by proxies and proxies is empty; add a ModelSource to it')
        if selection.score == 'harm' and method != 'exact':
            raise ValueError(f"selection {name!r} wants derivative.method = 'exact' and it is {method!r}; set it")


def matched(texts: Sequence[str], gold: str | None, grade: Grade) -> list[bool]:
    """Which candidates state the answer of the first, as the dataset grades it; the first itself always does.

    Two that state nothing do not match. Where gold is known the verdicts must agree too: not every grader is
    transitive, and the accuracy must not move.
    """
    answer = stated_answer(texts[0], gold)
    right = gold is not None and grade(texts[0], gold)

    def same(text: str) -> bool:
        return answer is not None and grade(text, answer) and (gold is None or grade(text, gold) == right)

    return [True, *map(same, texts[1:])]


def nll(model: Model, params: Params, batch: Batch, ways: int = 1) -> Array:
    """Per row the mean completion NLL in nats a token, 0 for a row without any. Logits exist `ways` rows at a time."""
    tokens_BL, targets_BL = jnp.asarray(batch.tokens_BL), jnp.asarray(batch.targets_BL)
    x_BLD, _ = model.apply(params, tokens_BL, positions(tokens_BL), method='hidden')

    def mean(rows: tuple[Array, Array, Array]) -> Array:
        x_BLD, *rest = rows
        logits_BLV = model.apply(params, x_BLD, method='unembed')
        sums_B, counts_B = losses.row_losses(logits_BLV, *rest)
        return sums_B / jnp.maximum(counts_B, 1)

    return map_rows(mean, (x_BLD, tokens_BL, targets_BL), ways)


def harm(model: Model, params: Params, direction: Params, batch: Batch, ways: int = 1) -> Array:
    """Per row the mean over its completion's tokens of <direction, grad log p(token)>: one jvp, no gradient is made."""
    direction = {path: x.astype(params[path].dtype) for path, x in direction.items()}
    return -jax.jvp(lambda params: nll(model, params, batch, ways), (params,), (direction,))[1]


def harms(model: Model, params: Params, direction: Params, examples: Sequence[Example]) -> dict[str, float]:
    """Example id -> its harm, by one compiled program a length."""
    compiled, found = jax.jit(functools.partial(harm, model)), dict[str, float]()
    for inside, batch in batches(examples, ROWS):
        values = np.asarray(compiled(params, direction, batch)).tolist()
        found |= zip((example.id for example in inside), values, strict=False)  # rows without targets pad a batch
    return found


class Scorer:
    """The compiled scores of an ensemble's proxies, of batches of `rows` rows, which are split over the mesh.

    groups: their params as `Weights.groups` has them. directions: as `Weights.directions`, leading axes [N, M/N]; None
    scores the NLL instead of harm. members: per group the indices of its proxies in the experiment.
    """

    def __init__(
        self,
        ensemble: Ensemble,
        groups: Sequence[Params],
        directions: Sequence[Params] | None,
        members: Sequence[Sequence[int]],
    ):
        self.members, self.rows = members, ROWS * ensemble.row_ways
        self.parts: list[tuple[Callable[..., Array], tuple[Params, ...], Layout]] = []
        for i, (group, params) in enumerate(zip(ensemble.groups, groups, strict=True)):
            if directions is None:
                self.parts.append((jax.jit(jax.vmap(_nll(group), (0, None))), (params,), group.layout))
            else:
                each = jax.vmap(_harm(group), (None, 0, None))
                self.parts.append((jax.jit(jax.vmap(each, (0, 0, None))), (params, directions[i]), group.layout))

    def __call__(self, batch: Batch) -> np.ndarray:
        """scores_MB float32: proxy by proxy in the experiment's order, one row a direction (or one a proxy)."""
        by_proxy: dict[int, np.ndarray] = {}
        for members, (score, given, layout) in zip(self.members, self.parts, strict=True):
            scores = np.asarray(score(*given, batch.on(layout)))
            by_proxy |= zip(members, scores.reshape(len(members), -1, scores.shape[-1]), strict=True)
        return np.concatenate([by_proxy[proxy] for proxy in sorted(by_proxy)])


def _nll(group: Group) -> Callable[[Params, Batch], Array]:
    return lambda params, batch: nll(group.model, params, batch, group.layout.ways('B'))


def _harm(group: Group) -> Callable[[Params, Params, Batch], Array]:
    return lambda params, direction, batch: harm(group.model, params, direction, batch, group.layout.ways('B'))
