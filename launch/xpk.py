"""The commands of XPK, which makes the JobSets itself; launch.gke --xpk is the program."""

from __future__ import annotations

import dataclasses
import shlex

from adx.errors import ConfigError
from launch import costs, preflight, service, tpus
from launch.commands import Command, command, run_all
from launch.jobs import RETRIED, Job, Site


@dataclasses.dataclass(frozen=True)
class Xpk:
    """One workload a shard, so that a dead one starts again alone."""

    site: Site
    cluster: str
    slice_: tpus.Slice | None
    named_by_shard = True
    references = ('', '')

    def check(self, job: Job) -> None:
        service.check_image(job)
        if not (self.slice_ and self.cluster and self.site.zone):
            raise ConfigError('--xpk needs --accelerator_type, --cluster and --zone')
        if self.site.kms_key or self.site.service_account or job.labels:
            raise ConfigError(
                '--kms_key, --service_account and --label are not for --xpk, whose cluster has them; '
                'launch/README.md says how'
            )
        if not job.retries:
            raise ConfigError('--retries must be above 0 with --xpk, which makes --max-restarts of it')
        if self.slice_.hosts > 1 and not job.distributed:
            raise ConfigError(f'{self.slice_.accelerator_type} has {self.slice_.hosts} hosts; add --distributed')

    def fleet(self, job: Job) -> costs.Fleet:
        assert self.slice_ is not None
        chips = job.shards * self.slice_.chips
        return costs.Fleet(self.slice_.generation.unit, chips, chips, self.site.area, self.site.provisioning)

    def create(self, job: Job, shard: int) -> Command:
        assert self.slice_ is not None
        share = () if job.distributed else (f'--shard={shard}', f'--num_shards={job.shards}')
        # XPK runs it in a shell, which would keep signals to itself.
        start = shlex.join(['exec', 'python', '-m', *job.arguments, *share])
        return self._xpk(
            'create', f'--workload={workload_name(job, shard)}', f'--tpu-type={self.slice_.accelerator_type}',
            f'--docker-image={job.image}', f'--command={start}',
            f'--max-restarts={job.retries}',  # the default is none
            f'--restart-on-exit-codes={",".join(map(str, RETRIED))}',
            '--spot' if self.site.spot else '',
            f'--reservation={self.site.reservation}' if self.site.reservation else '',
            *(f'--env={name}={value}' for name, value in job.variables.items()),
        )  # fmt: skip

    def submission(self, job: Job) -> list[Command]:
        return [self.create(job, shard) for shard in range(job.shards)]

    def submit(self, job: Job) -> None:
        run_all(self.submission(job))

    def listing(self) -> list[Command]:
        return [self._xpk('list')]

    def logs(self, job: Job) -> list[Command]:
        names = ','.join(workload_name(job, shard) for shard in range(job.shards))
        selector = f'--selector=jobset.sigs.k8s.io/jobset-name in ({names})'
        return [command('kubectl', 'logs', selector, '--all-containers', '--prefix', '--tail=200')]

    def cancel(self, job: Job) -> list[Command]:
        """XPK knows no pause. What was decoded is in the workdir."""
        return [
            self._xpk('delete', f'--workload={workload_name(job, shard)}', '--force') for shard in range(job.shards)
        ]

    def delete(self, job: Job) -> list[Command]:
        return self.cancel(job)

    def preflight(self, job: Job) -> str:
        return preflight.text(preflight.of_cluster(self.site), self.site, job)

    def budget_note(self) -> str:
        return 'nodes are paid for until the pool lets them go'

    def _xpk(self, verb: str, *words: str) -> Command:
        place = (f'--cluster={self.cluster}', *self.site.words(zone=True))
        return command('xpk', 'workload', verb, *place, *words)


def workload_name(job: Job, shard: int) -> str:
    return f'{job.name}-{shard}'
