"""From the names in an experiment to models on the mesh."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from etils import epath
from jax.sharding import Mesh

from adx import checkpoints, needs
from adx.datasets.tokenizing import Tokenizer, check_same_vocabulary, load_tokenizer
from adx.decoding.ensemble import Ensemble, Group, Weights, stack_params
from adx.errors import ConfigError, InputError
from adx.experiment import Experiment, ModelSource
from adx.files import cache_directory
from adx.generation import Models
from adx.mesh import Layout, make_mesh, proxy_layout, teacher_layout
from adx.models.transformer import Params, TransformerConfig, make_model
from adx.staging import stage

ASSETS = pathlib.Path(__file__).parent / 'models' / 'assets'
FETCH = './tools/demo fetches SmolLM2'


def resolve(source: str) -> str:
    """The path of a model: as given, or by its name in the cache or among those that ship. Raises InputError."""
    if '://' in source or epath.Path(source).expanduser().exists():
        return source
    cache = cache_directory()
    for path in (cache / source, cache / f'{source}.gguf', ASSETS / source):
        if path.exists():
            return str(path)
    there = sorted(path.name for path in cache.iterdir()) if cache.is_dir() else []
    shipped = sorted(path.parent.name for path in ASSETS.glob('*/config.json'))
    raise InputError(
        f'model {source!r} is neither a path, nor in the cache {cache} (it has {there}), nor one of the shipped '
        f'{shipped}; {FETCH}'
    )


def resolve_translator(name: str) -> str | None:
    """The file of a translator: a path, or the name of one that ships with adx; None for ''."""
    if '://' in name:
        return str(stage(name))
    if not name or pathlib.Path(name).exists():
        return name or None
    shipped = ASSETS / f'{name}.safetensors'
    if not shipped.exists():
        names = sorted(path.stem for path in ASSETS.glob('*.safetensors'))
        raise InputError(f'translator {name!r} is neither a path nor one of the shipped {names}')
    return str(shipped)


def read_tokenizer(source: str) -> Tokenizer:
    """Of a model, by its path or name."""
    return load_tokenizer(str(stage(resolve(source))))


@dataclasses.dataclass(frozen=True)
class LaidOut:
    """An experiment's models on the mesh, without weights. vocab_rows: of all of them, padded.

    members: per group of the ensemble, the indices of its proxies in Experiment.proxies.
    """

    vocab_rows: int
    ensemble: Ensemble
    members: tuple[tuple[int, ...], ...]


@dataclasses.dataclass(frozen=True)
class Blueprint(LaidOut):
    """The resolved models of an experiment before any weight is read: enough to plan and to place them.

    without_weights: of the models that have none for some tokens, a line each that says for which.
    """

    tokenizer: Tokenizer
    without_weights: tuple[str, ...] = ()


def blueprint(experiment: Experiment, devices: Sequence[jax.Device] | None = None) -> Blueprint:
    """Resolves sources, checks that all models share the vocabulary, and lays the ensemble out on the mesh.

    Raises InputError where they do not, or where one has no weights for a word of it.
    """
    mesh = make_mesh_of(experiment, devices)  # before any file is read
    sources = (experiment.teacher, *experiment.proxies)
    tokenizer = _shared_tokenizer([source.source for source in sources])
    stored = [stored_config(source) for source in sources]
    names = ['teacher', *(f'proxy {i}' for i in range(len(experiment.proxies)))]
    lines = [
        _without_weights(f'the {name} {source.source!r}', tokenizer, config.vocab_size)
        for name, source, config in zip(names, sources, stored, strict=True)
    ]
    laid_out = lay_out(experiment, stored, tokenizer.size, mesh)
    return Blueprint(**vars(laid_out), tokenizer=tokenizer, without_weights=tuple(filter(None, lines)))


def make_mesh_of(experiment: Experiment, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The experiment's mesh. Raises ConfigError where the devices are too few or their platform is not there."""
    shape = experiment.mesh
    try:
        return make_mesh(shape.data, shape.proxy, shape.model, devices)
    except (RuntimeError, ValueError) as error:  # a platform that is not there, or too few devices
        raise ConfigError(str(error).splitlines()[0]) from error


def lay_out(experiment: Experiment, stored: Sequence[TransformerConfig], vocab: int, mesh: Mesh) -> LaidOut:
    """stored: the configs of teacher and proxies. vocab: tokens of the tokenizer that they share.

    A tokenizer may have more than a model has rows for, as Gemma 3's has one for images: such a token has no weights
    in some model, so none is asked for it or gives it.
    """
    shape = experiment.mesh
    # Every model pads to the same rows, a multiple of the ways that any layout may split the vocabulary.
    ways = shape.model * shape.proxy
    rows = -(-max(*(c.sizes['V'] for c in stored), vocab) // ways) * ways
    known = min(*(c.vocab_size for c in stored), vocab)
    teacher, *proxies = [
        dataclasses.replace(c, vocab_size=known, vocab_rows=rows, dtype=experiment.dtype) for c in stored
    ]
    alike: dict[tuple[TransformerConfig, int], list[int]] = {}
    for i, config in enumerate(proxies):
        one = experiment.proxies[i]
        # An early exit of the teacher itself, and of its whole: the translator of a teacher would come on top.
        exit_layer = one.exit_layer if one.source == experiment.teacher.source and not teacher.translator else 0
        alike.setdefault((config, exit_layer), []).append(i)
    groups = tuple(
        Group(make_model(config), proxy_layout(mesh, config.sizes, len(members)), len(members), exit=exit_layer)
        for (config, exit_layer), members in alike.items()
    )
    layout = teacher_layout(mesh, teacher.sizes, shape.shard_teacher_weights)
    ensemble = Ensemble(make_model(teacher), layout, groups)
    experiment.decode.check(ensemble.row_ways)
    return LaidOut(rows, ensemble, tuple(tuple(members) for members in alike.values()))


def check_window(experiment: Experiment, plan: Blueprint) -> None:
    """Raises ConfigError where decoding has caches for more tokens than a model was made for."""
    names, configs = {'teacher': experiment.teacher.source}, {'teacher': plan.ensemble.teacher.config}
    for group, members in zip(plan.ensemble.groups, plan.members, strict=True):
        names |= {f'proxy {i}': experiment.proxies[i].source for i in members}
        configs |= {f'proxy {i}': group.model.config for i in members}
    for role, config in configs.items():
        # Files with linear scaling may state the window from before it.
        window = int(config.max_length * (config.rope.factor if config.rope.scaling == 'linear' else 1))
        if 0 < window < experiment.decode.cache_length:
            raise ConfigError(
                f'decode.cache_length = {experiment.decode.cache_length} and the {role} {names[role]!r} was made for '
                f'max_length = {window} tokens; lower decode.cache_length to that, or take another model'
            )


def load_models(experiment: Experiment, plan: Blueprint, whole: bool = False) -> Models:
    """Reads the weights onto the mesh; of proxies that decode from the teacher's hidden states, only what is their own.

    whole: those too with all their weights.
    """
    ensemble = plan.ensemble
    teacher = _load(experiment.teacher, **_as_planned(experiment, plan, ensemble.teacher_layout))
    groups, hashes = load_proxies(experiment, plan, None if whole else needs.planned(ensemble, experiment).groups)
    hashes = {'teacher': teacher.identity} | hashes
    return Models(ensemble, Weights(teacher.params, groups), plan.tokenizer, hashes)


def load_proxies(
    experiment: Experiment, plan: Blueprint, running: Sequence[Group] | None = None
) -> tuple[tuple[Params, ...], dict[str, str]]:
    """The stacked weights of every group, as Weights.groups has them, and 'proxy_<i>' -> content hash.

    running: the plan's groups as they decode: only the weights that they then read (Group.paths). None reads all.
    """
    groups: list[Params] = []
    hashes: dict[str, str] = {}
    for i, (group, members) in enumerate(zip(plan.ensemble.groups, plan.members, strict=True)):
        whole = running is None or running[i].has_blocks
        loaded = [_load_member(experiment, plan, group, member, whole) for member in members]
        hashes |= {f'proxy_{i}': identity for i, (_, identity) in zip(members, loaded, strict=True)}
        groups.append(stack_params(group.model, group.layout, [params for params, _ in loaded]))
    return tuple(groups), hashes


def _load_member(
    experiment: Experiment, plan: Blueprint, group: Group, index: int, whole: bool
) -> tuple[Params, str]:
    """The weights of proxy `index`, or of an early exit without blocks its translator alone, and its hash."""
    source = experiment.proxies[index]
    if whole:
        loaded = load_proxy(experiment, plan, index, group.layout)
        return loaded.params, loaded.identity
    file = resolve_translator(source.translator)
    config, dtype = group.model.config, experiment.dtype
    params = checkpoints.load_translator(file, config, group.layout, dtype) if file else {}
    return params, identify(source)


def proxy_hashes(experiment: Experiment) -> list[str]:
    """Their content hashes, as `load_proxies` names them, without reading a weight."""
    return [identify(one) for one in experiment.proxies]


def identify(one: ModelSource) -> str:
    """The content hash of what would be loaded. Reads no weight."""
    return checkpoints.identify(resolve(one.source), one.exit_layer or None, resolve_translator(one.translator))


def load_proxy(experiment: Experiment, plan: Blueprint, index: int, layout: Layout) -> checkpoints.Loaded:
    """One proxy by itself, placed by `layout`."""
    return _load(experiment.proxies[index], **_as_planned(experiment, plan, layout))


class Alone(NamedTuple):
    """A model outside any ensemble, in float32 on the first device, with its tokenizer."""

    loaded: checkpoints.Loaded
    tokenizer: Tokenizer


def load_alone(source: ModelSource, layout: Callable[[TransformerConfig], Layout] | None = None) -> Alone:
    """layout: as `checkpoints.load` has it. Raises InputError where there is no such model."""
    return Alone(_load(source, layout=layout), read_tokenizer(source.source))


def _shared_tokenizer(sources: Sequence[str]) -> Tokenizer:
    teacher = read_tokenizer(sources[0])
    for source in dict.fromkeys(sources[1:]):
        if source != sources[0]:
            check_same_vocabulary(teacher, read_tokenizer(source))
    return teacher


def _without_weights(model: str, tokenizer: Tokenizer, rows: int) -> str:
    """Which tokens a model of so many rows has no weights for, '' for none. Raises InputError where one is a word."""

    def first(ids: Sequence[int]) -> str:
        return ', '.join(f'{i} ({tokenizer.tokens[i]!r})' for i in ids[:5]) + (', ...' if len(ids) > 5 else '')

    missing = [i for i in range(rows, tokenizer.size) if tokenizer.tokens[i]]
    words = [i for i in missing if i not in tokenizer.added_ids]
    if words:
        raise InputError(
            f'{model} has weights for {rows} tokens and its tokenizer has {tokenizer.size}: none for {len(words)} '
            f'words, first {first(words)}; take the tokenizer and the weights of one model'
        )
    lacks = f'{model} has no weights for {len(missing)} of {tokenizer.size} tokens, so that none is served'
    return f'{lacks}: {first(missing)}' if missing else ''


def stored_config(source: ModelSource) -> TransformerConfig:
    """Of what would be loaded, without its weights."""
    config = checkpoints.read_config(resolve(source.source))
    config = checkpoints.early_exit(config, source.exit_layer or None, source.source)
    return dataclasses.replace(config, translator=bool(resolve_translator(source.translator)) or config.translator)


def _load(source: ModelSource, **how: Any) -> checkpoints.Loaded:
    """how: as `checkpoints.load` has it."""
    translator = resolve_translator(source.translator)
    return checkpoints.load(
        resolve(source.source), num_layers=source.exit_layer or None, translator=translator, **how
    )


def _as_planned(experiment: Experiment, plan: Blueprint, layout: Layout) -> dict[str, Any]:
    """How a model of a run is loaded."""
    dtype = experiment.dtype
    return {'layout': lambda _: layout, 'param_dtype': dtype, 'dtype': dtype, 'vocab_rows': plan.vocab_rows}
