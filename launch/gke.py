"""Runs a job on GKE as a JobSet, or with --xpk by XPK, one pod a shard.

With --distributed it is one program across --hosts:

    python -m launch.gke --name=poe --config=configs/smollm2_poe.py --workdir=gs://bucket/poe --cluster=adx \\
      --image=us-docker.pkg.dev/project/adx/run:1 --region=us-west4 --accelerator_type=v5litepod-8 --shards=2

The flags of launch.run mean what they mean there. --dry_run prints the YAML or the commands, device-hours and cost.
--cancel suspends the JobSet; the same command again continues it, and leaves one alone that runs.
Exit codes: 0 done, 2 flags or config, 3 input, 69 the cluster refused.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any

from absl import flags

from adx.errors import ConfigError
from launch import costs, jobs, preflight, program, run, service, tpus
from launch.commands import Command, command, find, remove_each, run_all
from launch.jobs import Job, Site
from launch.jobset import jobset
from launch.xpk import Xpk

CLUSTER = flags.DEFINE_string('cluster', '', 'The GKE cluster, with the JobSet API installed.')
NAMESPACE = flags.DEFINE_string('namespace', 'default', 'Of the cluster.')
NODE_POOL = flags.DEFINE_string('node_pool', '', 'Run on this pool only; with --kms_key it is made if absent.')
XPK = flags.DEFINE_bool('xpk', False, 'Hand the job to XPK, on a cluster that XPK made.')
for shared in (costs, jobs, run, service):
    flags.adopt_module_key_flags(shared)  # for --help


@dataclasses.dataclass(frozen=True)
class Gke:
    """slice_: of one shard, None for machines with GPUs or CPUs only. gpu, gpus: of one host."""

    site: Site
    cluster: str
    namespace: str = 'default'
    slice_: tpus.Slice | None = None
    machine_type: str = ''
    gpu: str = ''
    gpus: int = 0
    node_pool: str = ''
    named_by_shard = False
    references = (r'[a-z0-9]([-a-z0-9.]{0,250}[a-z0-9])?/[-\w.]+', 'secret/key')

    def check_place(self) -> None:
        if not self.cluster or not (self.site.region or self.site.zone):
            raise ConfigError('--cluster is needed, and --region or --zone, where it is')

    def check(self, job: Job) -> None:
        service.check_image(job)
        if self.site.kms_key and not (self.node_pool and self.site.zone and (self.slice_ or self.machine_type)):
            raise ConfigError('--kms_key is for the disks of a node pool: add --node_pool, --zone and --machine_type')
        if self.slice_:
            self.slice_.check_hosts(job)
        if self.slice_ and job.distributed and job.hosts != self.slice_.hosts:
            raise ConfigError(
                f'{self.slice_.accelerator_type} has {self.slice_.hosts} hosts; give --hosts={self.slice_.hosts}'
            )
        if job.distributed and not job.retries:
            raise ConfigError('--retries must be above 0 with --distributed: hosts come and go')
        if '@' in self.site.service_account:
            raise ConfigError('--service_account is one of Kubernetes here, bound to one of the cloud; give its name')

    def fleet(self, job: Job) -> costs.Fleet:
        if self.slice_:
            return self.slice_.fleet(job, self.site)
        pods = job.hosts if job.distributed else job.shards
        unit = costs.machine_unit(self.machine_type, self.gpus)
        return costs.Fleet(unit, pods, pods * max(self.gpus, 1), self.site.area, self.site.provisioning)

    def manifest(self, job: Job) -> dict[str, Any]:
        """The JobSet."""
        return jobset(job, self._pod(), self.namespace, self.slice_ is not None)

    def _pod(self) -> dict[str, Any]:
        """Where a pod runs and on what."""
        wanted, selector = {}, {}
        if self.slice_:
            wanted['google.com/tpu'] = str(self.slice_.chips_per_host)
            selector['cloud.google.com/gke-tpu-accelerator'] = self.slice_.generation.selector
            selector['cloud.google.com/gke-tpu-topology'] = self.slice_.topology
        if self.gpus:
            wanted['nvidia.com/gpu'] = str(self.gpus)
        if self.gpu:
            selector['cloud.google.com/gke-accelerator'] = self.gpu
        if self.machine_type:
            selector['node.kubernetes.io/instance-type'] = self.machine_type
        if self.site.spot:
            selector['cloud.google.com/gke-spot'] = 'true'
        if self.site.reservation:
            selector['cloud.google.com/reservation-name'] = self.site.reservation
        if self.node_pool:
            selector['cloud.google.com/gke-nodepool'] = self.node_pool
        account = {'serviceAccountName': self.site.service_account} if self.site.service_account else {}
        return {'nodeSelector': selector, 'resources': {'limits': wanted, 'requests': dict(wanted)}, **account}

    def pool(self, job: Job) -> Command:
        """Makes the node pool whose disks are under a key, in one zone: gcloud counts its nodes per zone."""
        site, slice_ = self.site, self.slice_
        pods = slice_.hosts if slice_ and slice_.hosts > 1 else job.hosts if job.distributed else job.shards
        return self._pool(
            'create', f'--machine-type={slice_.machine_type if slice_ else self.machine_type}', f'--num-nodes={pods}',
            f'--tpu-topology={slice_.topology}' if slice_ and slice_.hosts > 1 else '',
            f'--accelerator=type={self.gpu},count={self.gpus}' if self.gpu else '',
            '--spot' if site.spot else '',
            '--reservation-affinity=specific' if site.reservation else '',
            f'--reservation={site.reservation}' if site.reservation else '',
            f'--boot-disk-kms-key={site.kms_key}', f'--labels={job.label_words}',
            f'--node-locations={site.zone}' if site.region else '',
        )  # fmt: skip

    def submission(self, job: Job) -> list[Command]:
        import yaml

        text = yaml.safe_dump(self.manifest(job), sort_keys=False, width=1000)
        pool = [self.pool(job)] if self.site.kms_key else []
        return [*pool, self.login(), command('kubectl', 'apply', '--filename=-', stdin=text)]

    def submit(self, job: Job) -> None:
        run_all([self.login()])
        if self.site.kms_key and find(self._pool('describe', '--format=value(name)')) is None:
            run_all([self.pool(job)])
        path = '--output=jsonpath={.spec.suspend}/{.status.terminalState}'
        state = find(self._kubectl('get', 'jobset', job.name, path))
        suspended, _, ended = (state or '').partition('/')
        if state is None or ended:
            remove_each([self._remove(job)] if ended else [])
            run_all(self.submission(job)[-1:])
        elif suspended == 'true':
            run_all([self._suspend(job, 'false')])
        else:
            print(f'{job.name} is there; nothing was done')

    def listing(self) -> list[Command]:
        return [self.login(), self._kubectl('get', 'jobsets', '--selector=app=adx')]

    def logs(self, job: Job) -> list[Command]:
        selector = f'--selector=jobset.sigs.k8s.io/jobset-name={job.name}'
        words = ('logs', selector, '--all-containers', '--prefix', '--tail=200')
        return [self.login(), self._kubectl(*words)]

    def cancel(self, job: Job) -> list[Command]:
        return [self.login(), self._suspend(job, 'true')]

    def delete(self, job: Job) -> list[Command]:
        """Not the node pool, which other jobs may use."""
        return [self.login(), self._remove(job)]

    def preflight(self, job: Job) -> str:
        return preflight.text(preflight.of_cluster(self.site), self.site, job)

    def budget_note(self) -> str:
        return 'nodes are paid for until the pool lets them go'

    def login(self) -> Command:
        words = ('get-credentials', self.cluster, *self.site.words(location=True))
        return command('gcloud', 'container', 'clusters', *words, login=True)

    def _remove(self, job: Job) -> Command:
        return self._kubectl('delete', 'jobset', job.name, '--ignore-not-found', '--cascade=foreground')

    def _suspend(self, job: Job, value: str) -> Command:
        patch = f'--patch={{"spec": {{"suspend": {value}}}}}'
        return self._kubectl('patch', 'jobset', job.name, '--type=merge', patch)

    def _kubectl(self, *words: str) -> Command:
        return command('kubectl', f'--namespace={self.namespace}', *words)

    def _pool(self, verb: str, *words: str) -> Command:
        place = (f'--cluster={self.cluster}', *self.site.words(location=True))
        return command('gcloud', 'container', 'node-pools', verb, self.node_pool, *place, *words)


def main() -> None:
    site = jobs.site_from_flags()
    for flag, value in (('cluster', CLUSTER.value), ('namespace', NAMESPACE.value), ('node_pool', NODE_POOL.value)):
        if value and not re.fullmatch(r'[a-z]([-a-z0-9]{0,61}[a-z0-9])?', value):
            raise ConfigError(f'--{flag}={value!r} is not allowed; it must be small letters, digits and dashes')
    slice_ = tpus.from_flags()
    if XPK.value:
        service.carry_out(Xpk(site, CLUSTER.value, slice_))
        return
    machine, gpu = (jobs.check_pattern(one.name, one.value) for one in (jobs.MACHINE_TYPE, jobs.GPU))
    service.carry_out(
        Gke(site, CLUSTER.value, NAMESPACE.value, slice_, machine, gpu, jobs.GPUS.value, NODE_POOL.value)
    )


if __name__ == '__main__':
    program.start(main, compiles=False)
