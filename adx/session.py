"""adx in a notebook: load, prompts, defence, decode, show."""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Sequence

from adx import directions, generation, loading, spans, view
from adx import experiment as experiments
from adx.batching import Example
from adx.errors import ConfigError, InputError
from adx.experiment import Arm, Experiment
from adx.generation import Models
from adx.types import POISONED, Prompt, Trace


@dataclasses.dataclass
class Run:
    """A run in memory. Calling it decodes what is missing; an interrupted cell keeps what is finished.

    A trace whose teacher gave nan or inf is not finished: it is told and decoded again by the next call.

    `traces` holds the finished traces by request id. Shown in a notebook it is the side-by-side page.
    """

    experiment: Experiment
    models: Models
    prompts: Sequence[Prompt]
    traces: dict[str, Trace] = dataclasses.field(default_factory=dict)

    def __call__(self) -> Run:
        """Decodes every trace that is not there yet, with a progress bar. KeyboardInterrupt ends it early."""
        from tqdm.auto import tqdm

        made = generation.make_requests(self.experiment, self.prompts, self.models.tokenizer)
        if made.rejected:
            id_, reason = next(iter(made.rejected.items()))
            raise InputError(f'{len(made.rejected)} requests cannot be served, first {id_}: {reason}')
        pending = [request for id_, request in made.requests.items() if id_ not in self.traces]
        poisoned, fallbacks = [], 0
        with tqdm(total=len(made.requests), initial=len(self.traces), unit='trace') as bar:
            try:
                for _, trace in generation.decode(self.experiment, self.models, made, pending):
                    if trace.stop == POISONED:
                        poisoned.append(trace.request_id)
                        continue
                    self.traces[trace.request_id] = trace
                    fallbacks += sum(trace.statistics.get('fallback', ()))
                    bar.update()
            except KeyboardInterrupt:
                print(f'stopped with {len(self.traces)} of {len(made.requests)} traces; call it again to continue')
        if poisoned:
            print(f'{len(poisoned)} traces are left out, first {poisoned[0]}: the teacher gave nan or inf')
        if fallbacks:
            print(f'{fallbacks} tokens are the plain teacher\'s: a proxy gave nan or inf')
        return self

    def comparison(self) -> view.Comparison:
        decode = functools.partial(self.models.tokenizer.backend.decode, skip_special_tokens=False)
        pieces = functools.partial(spans.token_pieces, decode)
        groups = view.compare(self.traces.values(), pieces, self.experiment.dataset.grade)
        return view.Comparison(groups, 'Traces side by side')

    def _repr_html_(self) -> str:
        return self.comparison()._repr_html_()

    def __str__(self) -> str:
        return str(self.comparison())


def load(experiment: Experiment) -> Models:
    """The models of an experiment on its mesh. Raises AdxError for what cannot be loaded."""
    experiments.check(experiment)
    plan = loading.blueprint(experiment)
    loading.check_window(experiment, plan)
    for line in plan.without_weights:
        warnings.warn(line, stacklevel=2)
    return loading.load_models(experiment, plan)


def decode_holdout(experiment: Experiment, models: Models) -> list[Example]:
    """Traces of the undefended teacher on the holdout split, as `Experiment.derivative` asks for them."""
    from tqdm.auto import tqdm

    held = experiments.holdout(experiment)
    prompts = generation.read_prompts(held)
    directions.check_apart(prompts, experiment.dataset.prompts(experiment.split))
    made = generation.make_requests(held, prompts, models.tokenizer)
    decoded = generation.decode(held, models, made, list(made.requests.values()))
    with tqdm(decoded, total=len(made.requests), unit='holdout trace') as bar:
        return directions.examples([trace for _, trace in bar if trace.stop != POISONED], made)


def prepare(experiment: Experiment, models: Models) -> Models:
    """The models with directions for rules that want derivatives, taken on holdout traces that are decoded here.

    Raises AdxError where that cannot be done.
    """
    if any(group.difference for group in models.ensemble.groups):
        raise ConfigError(
            "these models hold two copies of each proxy (derivative.method = 'difference') and not the proxy itself, "
            'which a gradient is taken of; load them anew with adx.load'
        )
    plan, found = loading.blueprint(experiment), dict[int, directions.Directions]()
    models = _with_whole_proxies(experiment, models, plan)
    examples = decode_holdout(experiment, models)
    for i, differentiator in directions.differentiators(plan):
        params, name = directions.member(models, plan.members, i), f'proxy_{i}'
        identity = directions.identity(experiment, plan.tokenizer.size, models.hashes[name], examples)
        count = experiment.derivative.directions
        taken = directions.take(differentiator, params, examples, count, name, lambda done, total: None)
        found[i] = directions.stack(differentiator, taken, identity)
    return directions.attach(models, plan.members, found, experiment.derivative)


def _with_whole_proxies(experiment: Experiment, models: Models, plan: loading.Blueprint) -> Models:
    """What `load` left out where rules wanted no derivatives: an early exit of the teacher has its translator alone."""
    pairs = zip(models.weights.groups, plan.ensemble.groups, strict=True)
    if all({*params} == {*group.model.axes} for params, group in pairs):
        return models
    groups, hashes = loading.load_proxies(experiment, plan)
    if not hashes.items() <= models.hashes.items():
        raise ConfigError('the proxies are other files than when these models were loaded; load them with adx.load')
    return dataclasses.replace(models, weights=models.weights._replace(groups=groups))


def decode(
    experiment: Experiment,
    models: Models | None = None,
    prompts: Sequence[Prompt] | None = None,
    arms: Sequence[Arm] = (),
) -> Run:
    """Decodes an experiment in memory. models, prompts and arms replace what the experiment says.

    Rules that want derivatives need models with directions: `prepare` makes them, and is called where there are none.
    """
    if arms:
        experiment = dataclasses.replace(experiment, arms=tuple(arms))
    experiments.check(experiment)
    if prompts is None:
        if experiment.split == 'test':
            raise ConfigError(
                "split = 'test' is read by frozen experiments only, and each reading is kept, which takes a workdir: "
                'run launch.run with --stages=freeze,generate'
            )
        prompts = generation.read_prompts(experiment)
    if experiments.wants_tangents(experiment):  # also where the models have their directions
        directions.check_apart(generation.read_prompts(experiments.holdout(experiment)), prompts)
    models = models or load(experiment)
    if experiments.wants_tangents(experiment) and not models.weights.directions:
        models = prepare(experiment, models)
    return Run(experiment, models, prompts)()
