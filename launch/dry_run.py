"""What --dry_run prints: the resolved experiment, what its data gives and the memory plan."""

from __future__ import annotations

import json
from typing import Any


def dry_run(experiment: Any, workdir: str | None) -> None:
    """Prints the resolved experiment, what its data gives and the memory plan. Reads headers, no weights."""
    import jax

    from adx import experiment as experiments
    from adx import fitting, generation, loading, needs, planning
    from launch.progress import left_out_line

    if hasattr(experiment, 'students'):
        from launch import study

        experiment = study.dry_run(experiment)
    experiments.check(experiment)
    blueprint = loading.blueprint(experiment)
    loading.check_window(experiment, blueprint)
    prompts = generation.read_prompts(experiment)
    made = generation.make_requests(experiment, prompts, blueprint.tokenizer)
    print(json.dumps(experiments.to_json(experiment), indent=2))
    print(f'\nexperiment hash {experiments.experiment_hash(experiment)}')
    arms = len(experiment.arms)
    print(f'{len(made.prompts)} traces: {len(prompts)} prompts x {experiment.samples} samples x {arms} arms')
    print(*(left_out_line(generation.left_out(experiment)), *blueprint.without_weights), sep='\n')
    if made.rejected:
        id_, reason = next(iter(made.rejected.items()))
        print(f'{len(made.rejected)} of them cannot be served, first {id_}: {reason}')
    if experiments.wants_directions(experiment):
        print(_directions_line(experiment, workdir))
    mesh, ensemble = experiment.mesh, needs.planned(blueprint.ensemble, experiment)
    print(f'\nmemory per device, mesh {mesh.data}x{mesh.proxy}x{mesh.model} ({jax.default_backend()}):')
    print(planning.plan_memory(ensemble, experiment.decode).table(fitting.device_memory(jax.local_devices()[0])))
    print(*fitting.search_lines(experiment, blueprint), sep='\n')


def _directions_line(experiment: Any, workdir: str | None) -> str:
    """Whether the directions that the rules want are in `workdir`."""
    from adx import directions
    from adx.errors import InputError

    try:
        directions.check_prepared(experiment, workdir or '(none given)')
    except InputError as error:
        return f'directions: {error}'
    return f'directions: there, of {len(experiment.proxies)} proxies'
