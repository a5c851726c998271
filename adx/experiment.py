"""What one run is: a frozen dataclass whose fields stand in the order of the data flow."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, get_type_hints

from adx import datasets, defences, files, rewriters
from adx.aggregation import Aggregation
from adx.automata import SPANS
from adx.datasets.chat import Prompting
from adx.decoding.engine import DecodeConfig
from adx.defences import Undefended
from adx.defences.tilting import priced
from adx.drafting import Rewrite, check_rewrites, written_under
from adx.errors import ConfigError
from adx.fields import check_field, check_kinds, hint, literal, set_field
from adx.gates import Gates
from adx.hashing import content_hash
from adx.policy import Customer, Policy, Terms, check_policy
from adx.selection import Selection, check_selections
from adx.settings import COPY_DTYPES, METHODS, SCALES, Arm, Derivative, MeshShape, ModelSource
from adx.sweeping import follow, swept
from adx.types import NAMING, Dataset, Sampling, check_choice, check_range, is_name

DISCLOSURES = ('public', 'contract', 'none: <reason>')
DTYPES = ('float32', 'bfloat16')  # of a run; files may hold float16 too (checkpoints.DTYPES)
# How a run is carried out, not what it is: may change between the runs of one workdir.
# A policy may change as well: who is served how from then on, each trace says by which.
# Selections and rewrites come after the traces.
OPERATIONAL = ('mesh', 'decode', 'policy', 'selections', 'rewriter', 'rewriter_prompting', 'rewrites')


@dataclasses.dataclass(frozen=True)
class Experiment:
    """One run of `generate`.

    skip, limit: how many prompts of the split are left out, and how many of those behind them are taken, in its order;
      a limit of 0 takes all. samples: traces per prompt and arm.
    selections: each keeps one of an arm's samples of every prompt, by `--stages=select`.
    rewrites: each says the traces of an arm or a selection otherwise, by `--stages=rewrite`; rewriter: the model that
      is told to, None for the teacher; rewriter_prompting: how that one is spoken to, None for as the teacher is.
    dtype: 'float32' or 'bfloat16', of weights, activations and caches.
    derivative: read only where an arm's rule wants it.
    protected_spans: names of automata.SPANS, in which the teacher is served as it is: recognised in the new tokens,
      from the token after the one that completes the opener.
    policy: serves each customer by its licence; arms then give sampling and the structure of the rule, the terms its
      numbers. None serves all prompts alike.
    disclosure: how readers learn that traces are defended; required when an arm is.
    licence: of the traces, as release/ states it.
    """

    dataset: Dataset
    teacher: ModelSource
    split: str = 'train'
    skip: int = 0
    limit: int = 0
    prompting: Prompting = Prompting()
    proxies: tuple[ModelSource, ...] = ()
    derivative: Derivative = Derivative()
    arms: tuple[Arm, ...] = (Arm('plain'),)
    policy: Policy | None = None
    samples: int = 1
    selections: tuple[Selection, ...] = ()
    rewriter: ModelSource | None = None
    rewriter_prompting: Prompting | None = None
    rewrites: tuple[Rewrite, ...] = ()
    max_new_tokens: int = 256
    stop_strings: tuple[str, ...] = ()
    protected_spans: tuple[str, ...] = ()
    seed: int = 0
    dtype: str = 'float32'
    decode: DecodeConfig = DecodeConfig(record='scalars')
    mesh: MeshShape = MeshShape()
    disclosure: str = ''
    licence: str = ''


REGISTRY: dict[str, type] = {
    **defences.MENU,
    **datasets.MENU,
    **rewriters.MENU,
    'aggregation': Aggregation,
    'arm': Arm,
    'customer': Customer,
    'decode': DecodeConfig,
    'derivative': Derivative,
    'experiment': Experiment,
    'gates': Gates,
    'mesh': MeshShape,
    'model': ModelSource,
    'policy': Policy,
    'prompting': Prompting,
    'rewrite': Rewrite,
    'sampling': Sampling,
    'selection': Selection,
    'terms': Terms,
}


def to_json(value: Any, registry: Mapping[str, type] = REGISTRY) -> Any:
    """Dataclasses become {'type': name in the registry, field: value}; tuples become lists."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: to_json(getattr(value, f.name), registry) for f in dataclasses.fields(value)}
        return {'type': _name(type(value), registry), **fields}
    if isinstance(value, tuple | list):
        return [to_json(item, registry) for item in value]
    return value


def _name(cls: type, registry: Mapping[str, type]) -> str:
    for name, known in registry.items():
        if known is cls:
            return name
    raise ConfigError(f'{cls.__name__} is in no menu, so it cannot be written down; add it to the MENU of its folder')


def from_json(value: Any, registry: Mapping[str, type] = REGISTRY) -> Any:
    """The inverse of to_json. Raises ConfigError on an unknown type or field, and on a missing field."""
    if isinstance(value, list):
        return tuple(from_json(item, registry) for item in value)
    if not isinstance(value, dict) or 'type' not in value:
        return value
    kind = str(value['type'])
    cls = registry.get(kind)
    if cls is None:
        raise ConfigError(f'unknown type {kind!r}; one of {sorted(registry)}{hint(kind, registry)}')
    given = {name: from_json(item, registry) for name, item in value.items() if name != 'type'}
    for name in given:
        check_field(cls, name)
    absent = dataclasses.MISSING
    needed = [f.name for f in dataclasses.fields(cls) if f.default is absent and f.default_factory is absent]
    missing = [name for name in needed if name not in given]
    if missing:
        raise ConfigError(f'{cls.__name__} lacks {missing}; it was given {sorted(given)}; add them')
    check_kinds(cls, given)
    return cls(**given)


def identity(experiment: Experiment) -> dict[str, Any]:
    """The JSON of what decides the traces and what is recorded of them: all fields but the operational ones."""
    fields = {name: value for name, value in to_json(experiment).items() if name not in OPERATIONAL}
    return fields | {'record': experiment.decode.record}


def experiment_hash(experiment: Experiment) -> str:
    return content_hash(identity(experiment))


def policy_hash(experiment: Experiment) -> str:
    """'' without a policy."""
    return '' if experiment.policy is None else content_hash(to_json(experiment.policy))


def override(experiment: Experiment, assignments: list[str]) -> Experiment:
    """Applies 'path.to.field=value' strings. Tuples are indexed by number, or by the name of an arm.

    Values are Python literals, anything else is a string; they must have the field's type.
    Raises ConfigError naming the path, what is there and the nearest match.
    """
    for assignment in assignments:
        path, equals, text = assignment.partition('=')
        if not equals:
            raise ConfigError(f'--set {assignment!r} has no "="; write --set path.to.field=value')
        experiment = set_field(experiment, path.split('.'), literal(text), f'--set {path}')
    return experiment


def sweep(experiment: Experiment, assignments: list[str]) -> Experiment:
    """Applies 'arms.<arm>.path.to.field=value,value,...' strings: one arm per value takes the place of the arm.

    Several assignments to one arm make a grid; fields joined by '+' have each value together, as a rule inside a
    control and the rule whose price it pays: 'arms.control.defence.rule.rule.lam+defence.reference.lam=0.5,1'.
    An arm is named after its settings: 'poe.gamma=0.3,temperature=1'; its selections are made of every arm that takes
    its place. Values and errors are those of `override`.
    """
    grids = swept(experiment.arms, assignments, experiment.policy is not None)
    arms = tuple(arm for grid in grids for arm in grid)
    selections = follow(experiment.selections, experiment.arms, grids)
    return dataclasses.replace(experiment, arms=arms, selections=selections)


def writer_identity(experiment: Experiment) -> dict[str, Any]:
    """Which model rewrites and how it is spoken to, JSON-able; what is not said is left out."""
    found = {'rewriter': to_json(experiment.rewriter)}
    if experiment.rewriter_prompting is not None:
        found['rewriter_prompting'] = to_json(experiment.rewriter_prompting)
    return found


def wants_tangents(experiment: Experiment) -> bool:
    """Whether a rule of the run reads derivatives, so that decoding needs directions."""
    return any(arm.defence.wants_tangents for arm in experiment.arms)


def wants_directions(experiment: Experiment) -> bool:
    """Whether `--stages=prepare` has directions to take: for rules, for selections by harm, or for rewriters."""
    rewriters = {tool for one in experiment.rewrites for tool in one.rewriter.needs}
    selects = any(selection.score == 'harm' for selection in experiment.selections)
    return wants_tangents(experiment) or selects or bool(rewriters & {'edit', 'harm'})


def holdout(experiment: Experiment) -> Experiment:
    """The run that decodes the traces which the directions are taken on: the undefended teacher, split 'holdout'."""
    derivative = experiment.derivative
    return dataclasses.replace(
        experiment,
        split='holdout',
        skip=0,
        limit=derivative.prompts,
        proxies=(),
        derivative=Derivative(),
        arms=(Arm('plain', sampling=derivative.sampling),),
        policy=None,
        selections=(),
        rewrites=(),
        protected_spans=(),
        samples=derivative.samples,
        max_new_tokens=derivative.max_new_tokens,
        decode=dataclasses.replace(experiment.decode, record='none'),
    )


def check(experiment: Experiment) -> None:
    """Raises ConfigError for what no run could serve. Needs no model, data or device."""
    e = experiment
    files.path_of(getattr(e.dataset, 'path', ''))  # menus know no clients, and data is read before the workdir
    for name, kind in get_type_hints(Experiment).items():
        value, least = getattr(e, name), 1 if name in ('samples', 'max_new_tokens') else 0
        if kind is int and (type(value) is not int or value < least):
            raise ConfigError(f'{name} = {value!r} is not allowed; it must be an integer of at least {least}')
    if e.dtype not in DTYPES:
        raise ConfigError(f'dtype = {e.dtype!r} is unknown; it must be one of {DTYPES}{hint(e.dtype, DTYPES)}')
    names = [arm.name for arm in e.arms]
    if not names or len(set(names)) < len(names) or not all(map(is_name, names)):
        raise ConfigError(f'arms are named {names}; each needs its own name, {NAMING}')
    _check_arms(e)
    if any(not isinstance(stop, str) or not stop for stop in e.stop_strings):
        raise ConfigError(f'stop_strings = {e.stop_strings!r} is not allowed; each must be text, and not empty')
    for name in e.protected_spans:
        if name not in SPANS:
            raise ConfigError(f'protected_spans has {name!r}; the spans are {tuple(SPANS)}{hint(str(name), SPANS)}')
    e.decode.check()
    if e.max_new_tokens > e.decode.cache_length:
        raise ConfigError(
            f'max_new_tokens = {e.max_new_tokens} does not fit decode.cache_length = {e.decode.cache_length}, '
            'which holds the prompt as well; raise cache_length'
        )
    _check_derivative(e.derivative)
    if wants_directions(e):
        check_holdout(e)


def _check_arms(e: Experiment) -> None:
    """Rules, and what serves or selects by them."""
    for arm in e.arms:
        try:
            arm.defence.check()
            arm.sampling.check()
        except ValueError as error:
            raise ConfigError(f'arm {arm.name!r}: {error}') from error
        if arm.sampling.temperature == 0 and (names := priced(arm.defence)):
            raise ConfigError(
                f'arm {arm.name!r}: {names[0]} holds the KL a token at a price, and at temperature 0 all mass is on '
                'one token, whose KL is a step; take a temperature above 0, or the rule without it'
            )
        if (arm.defence.wants_proxies or arm.defence.wants_tangents) and not e.proxies:
            raise ConfigError(f'arm {arm.name!r} needs a proxy and proxies is empty; add a ModelSource to it')
    rules = {arm.name: arm.defence for arm in e.arms}
    try:
        check_policy(e.policy, rules)
        check_selections(e.selections, list(rules), bool(e.proxies), e.derivative.method)
        check_rewrites(e.rewrites, list(rules), [one.name for one in e.selections], _lacking(e))
    except ValueError as error:
        raise ConfigError(str(error)) from error
    chosen = bool(e.rewrites) or any(selection.is_defence for selection in e.selections)
    if chosen or any(not isinstance(arm.defence, Undefended) for arm in e.arms):
        _check_disclosure(e.disclosure)


def _lacking(e: Experiment) -> dict[str, str]:
    """Tool of rewriters -> why the run does not have it."""
    lacking = {}
    if e.rewriter is not None and any(written_under(one.rewriter) for one in e.rewrites):
        lacking['write'] = 'a rule is played by the teacher alone; leave `rewriter` out, or the arm'
    if not hasattr(e.dataset, 'render'):
        lacking['render'] = f'dataset {e.dataset.name!r} has no writer of its own'
    for tool in ('edit', 'harm'):
        if not e.proxies:
            lacking[tool] = 'proxies is empty; add a ModelSource to it'
        elif e.derivative.method != 'exact':
            lacking[tool] = f"it wants derivative.method = 'exact' and that is {e.derivative.method!r}"
    return lacking


def _check_derivative(derivative: Derivative) -> None:
    for name, least in (('prompts', 0), ('samples', 1), ('max_new_tokens', 1), ('directions', 1)):
        value = getattr(derivative, name)
        if type(value) is not int or value < least:
            raise ConfigError(
                f'derivative.{name} = {value!r} is not allowed; it must be an integer of at least {least}'
            )
    try:
        derivative.sampling.check()
        for name, choices in (('scale', SCALES), ('method', METHODS), ('dtype', COPY_DTYPES)):
            check_choice(f'derivative.{name}', getattr(derivative, name), choices)
        check_range('derivative.eps', derivative.eps, 0.0, open_low=True)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if derivative.method == 'difference' and derivative.directions != 1:
        raise ConfigError(
            f"derivative.directions = {derivative.directions} is not allowed with method 'difference', whose two "
            "copies of a proxy have one direction; take 1 or method 'exact'"
        )


def check_holdout(e: Experiment) -> None:
    """What a run needs to take directions on traces of its own. Raises ConfigError for what it lacks."""
    if e.split == 'holdout':
        raise ConfigError(
            "split = 'holdout' is what directions are taken on and the run wants derivatives; serve another split"
        )
    if 'holdout' not in getattr(e.dataset, 'split_names', ()):
        raise ConfigError(
            f"the run wants derivatives along directions of the split 'holdout' and dataset {e.dataset.name!r} has no "
            'splits; give it the five of datasets/splits.py and say so in `split_names`, or drop what wants them'
        )
    try:
        check(holdout(e))
    except ConfigError as error:
        raise ConfigError(f'the holdout traces of `derivative`: {error}') from error


def _check_disclosure(disclosure: str) -> None:
    reason = disclosure.removeprefix('none:').strip() if disclosure.startswith('none:') else ''
    if disclosure not in ('public', 'contract') and not reason:
        raise ConfigError(
            f'disclosure = {disclosure!r}; a run with a defence states how readers are told: one of {DISCLOSURES} '
            '(see RESPONSIBLE_USE.md)'
        )
