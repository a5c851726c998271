"""The commands of XPK, which makes the JobSets itself; launch.gke --xpk is the program."""

from __future__ import annotations

import dataclasses
import shlex

from adx.errors import ConfigError
from launch import costs, preflight, service, tpus
from launch.commands import Command, command, escape, find, remove_each, run, run_all
from launch.jobs import RETRIED, Job, Site


@dataclasses.dataclass(frozen=True)
class Xpk:
    """One workload a shard, so that a dead one starts again alone."""

    site: Site
    cluster: str
    slice_: tpus.Slice | None
    named_by_shard = True
    references = ('', '')

    def check_place(self) -> None:
        if not (self.cluster and self.site.zone):
            raise ConfigError('--xpk needs --cluster and --zone')

    def check(self, job: Job) -> None:
        service.check_image(job)
        if not self.slice_:
            raise ConfigError('--xpk needs --accelerator_type')
        if self.site.kms_key:
            raise ConfigError(
                '--kms_key is not for --xpk: a disk gets its key when the node pool is made, which XPK does with the '
                f'cluster: xpk cluster create --custom-nodepool-arguments=--boot-disk-kms-key={self.site.kms_key}'
            )
        if self.site.service_account or job.labels:
            raise ConfigError('--service_account and --label are not for --xpk, whose cluster has its own')
        if not job.retries:
            raise ConfigError('--retries must be above 0 with --xpk, which makes --max-restarts of it')
        self.slice_.check_hosts(job)

    def fleet(self, job: Job) -> costs.Fleet:
        assert self.slice_ is not None
        return self.slice_.fleet(job, self.site)

    def create(self, job: Job, shard: int) -> Command:
        assert self.slice_ is not None
        # XPK runs it in a shell, which would keep signals to itself.
        start = shlex.join(['exec', 'python', '-m', *job.arguments, *job.share(shard)])
        return self._xpk(
            'create', f'--workload={job.shard_name(shard)}', f'--tpu-type={self.slice_.accelerator_type}',
            f'--docker-image={job.image}', f'--command={escape(start)}',
            f'--max-restarts={job.retries}',  # the default is none
            f'--restart-on-exit-codes={",".join(map(str, RETRIED))}',
            '--spot' if self.site.spot else '',
            f'--reservation={self.site.reservation}' if self.site.reservation else '',
            *(f'--env={name}={escape(value)}' for name, value in job.variables.items()),
        )  # fmt: skip

    def submission(self, job: Job) -> list[Command]:
        return [self.create(job, shard) for shard in range(job.shards)]

    def submit(self, job: Job) -> None:
        run(self._login())
        for shard in range(job.shards):
            name = job.shard_name(shard)
            ended = find(command('kubectl', 'get', 'jobset', name, '--output=jsonpath={.status.terminalState}'))
            if ended == '':
                print(f'{name} is there; nothing was done')
                continue
            remove_each([self._remove(name)] if ended else [])
            run_all([self.create(job, shard)])

    def listing(self) -> list[Command]:
        return [self._xpk('list')]

    def logs(self, job: Job) -> list[Command]:
        names = ','.join(job.shard_name(shard) for shard in range(job.shards))
        selector = f'--selector=jobset.sigs.k8s.io/jobset-name in ({names})'
        return [self._login(), command('kubectl', 'logs', selector, '--all-containers', '--prefix', '--tail=200')]

    def cancel(self, job: Job) -> list[Command]:
        """XPK knows no pause. What was decoded is in the workdir."""
        return [self._remove(job.shard_name(shard)) for shard in range(job.shards)]

    def delete(self, job: Job) -> list[Command]:
        return self.cancel(job)

    def preflight(self, job: Job) -> str:
        return preflight.text(preflight.of_cluster(self.site), self.site, job)

    def budget_note(self) -> str:
        return 'nodes are paid for until the pool lets them go'

    def _login(self) -> Command:
        """What XPK does first, for kubectl."""
        return dataclasses.replace(self._xpk('list'), login=True)

    def _remove(self, name: str) -> Command:
        return self._xpk('delete', f'--workload={name}', '--force')

    def _xpk(self, verb: str, *words: str) -> Command:
        place = (f'--cluster={self.cluster}', *self.site.words(zone=True))
        return command('xpk', 'workload', verb, *place, *words)
