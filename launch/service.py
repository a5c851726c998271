"""What every launcher does: submit, list, show logs, cancel, delete, check an account."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Protocol

from absl import flags

from adx.errors import ConfigError
from launch import costs, jobs, run
from launch.commands import Command, remove_each, run_each
from launch.jobs import Job

LIST = flags.DEFINE_bool('list', False, 'List the jobs there, of adx where the service can tell.')
LOGS = flags.DEFINE_bool('logs', False, 'Show the logs of --name.')
CANCEL = flags.DEFINE_bool('cancel', False, 'Stop --name; the same command without this continues it.')
DELETE = flags.DEFINE_bool('delete', False, 'Remove what was created for --name, never the workdir.')
PREFLIGHT = flags.DEFINE_bool('preflight', False, 'Print what the account needs and the commands that check it.')


class Service(Protocol):
    """One place that runs jobs. Its methods build commands, but for `submit`, which runs them.

    references: pattern and example of a reference to a secret; the example is '' where it takes none.
    named_by_shard: whether each shard is a thing of its own there.
    """

    @property
    def references(self) -> tuple[str, str]: ...

    @property
    def named_by_shard(self) -> bool: ...

    def check_place(self) -> None:
        """Raises ConfigError where the flags do not say where that is."""

    def check(self, job: Job) -> None:
        """Raises ConfigError for a job that cannot run there."""

    def fleet(self, job: Job) -> costs.Fleet: ...

    def submission(self, job: Job) -> list[Command]:
        """Starts a job that is not there yet."""

    def submit(self, job: Job) -> None:
        """Starts the job, or continues it; leaves one alone that runs."""

    def listing(self) -> list[Command]: ...

    def logs(self, job: Job) -> list[Command]: ...

    def cancel(self, job: Job) -> list[Command]: ...

    def delete(self, job: Job) -> list[Command]: ...

    def preflight(self, job: Job) -> str: ...

    def budget_note(self) -> str:
        """What is still paid for after --max_usd has ended the programs."""


def carry_out(service: Service) -> None:
    """Does what the flags say. Raises AdxError."""
    asked = [one.name for one in (LIST, LOGS, CANCEL, DELETE, PREFLIGHT) if one.value]
    if len(asked) > 1:
        raise ConfigError(f'--{asked[0]} and --{asked[1]} exclude each other; give one of them')
    if PREFLIGHT.value:
        print(service.preflight(jobs.from_flags(service.references)))
        return
    service.check_place()
    if not asked:
        launch(service)
    else:
        act: dict[str, Callable[[], list[Command]]] = {
            'list': service.listing,
            'logs': lambda: service.logs(named(service)),
            'cancel': lambda: service.cancel(named(service)),
            'delete': lambda: service.delete(named(service)),
        }
        carry = show if run.DRY_RUN.value else remove_each if DELETE.value else run_each
        carry(act[asked[0]]())


def named(service: Service) -> Job:
    """The job of --name and --shards, as far as it takes to find it again."""
    if service.named_by_shard and not flags.FLAGS['shards'].present:
        raise ConfigError('--shards is needed, as many as were started: each is a thing of its own here')
    return Job(jobs.name_from_flags(), shards=jobs.SHARDS.value)


def launch(service: Service) -> None:
    job = jobs.from_flags(service.references)
    service.check(job)
    experiment = run.resolve()
    fleet = service.fleet(job)
    price = costs.find_price(costs.PRICES.value, fleet)
    hours = limit(fleet, price, job.attempts)
    if hours:
        job = dataclasses.replace(job, max_hours=costs.hours_of_attempt(hours, job.attempts))
    if not run.DRY_RUN.value:
        service.submit(job)
        return
    tokens = costs.count_tokens(experiment, run.STAGE_NAMES.value)
    lines = costs.estimate(tokens, fleet, job.shards, costs.TOKENS_PER_SECOND.value, price)
    if hours:
        share = f'{hours:.2f} hours, {job.max_hours:.2f} for each of {job.attempts} attempts'
        lines.append(f'limit: {share}, then it stops resumably; {service.budget_note()}')
    for line in lines:
        print(f'# {line}')
    show(service.submission(job))


def limit(fleet: costs.Fleet, price: costs.Price | None, attempts: int) -> float:
    """Hours of the programs, all attempts together, by --max_hours and --max_usd; the less; 0 for no limit."""
    limits = [run.MAX_HOURS.value] if run.MAX_HOURS.value else []
    if costs.MAX_USD.value:
        starting = attempts * jobs.SECONDS_OF_START / 3600
        limits.append(costs.hours_within(costs.MAX_USD.value, fleet, price, starting))
    return min(limits, default=0.0)


def show(commands: Sequence[Command]) -> None:
    print('\n'.join(f'{one} &&' if one.login else str(one) for one in commands))


def check_image(job: Job) -> None:
    """What a container needs. Raises ConfigError."""
    if not job.image:
        raise ConfigError('--image is needed; launch/README.md says how to build one')
    config, workdir = run.CONFIG.value or '', run.WORKDIR.value or ''
    if config.startswith(('/', '~')) or '..' in config.split('/'):
        raise ConfigError(f'--config={config} is read inside the image; give it relative to the repository')
    if not workdir.startswith('gs://') and not (run.DRY_RUN.value and not workdir):
        raise ConfigError(f'--workdir={workdir} would end with its machine; give gs://bucket/path')
