"""Runs a job on GCP Batch, GPUs or CPUs, one task a shard:

    python -m launch.gcp_batch --name=poe --config=configs/smollm2_poe.py --workdir=gs://bucket/poe \\
      --image=us-docker.pkg.dev/project/adx/run:1 --region=us-central1 --machine_type=g2-standard-4 --gpus=1 --shards=8

The flags of launch.run mean what they mean there. --dry_run prints the job, its device-hours and its cost.
The same command again continues a job that ended, and leaves one alone that runs.
Exit codes: 0 done, 2 flags or config, 3 input, 69 the service refused.
"""

from __future__ import annotations

import dataclasses
import json
import time
from typing import Any

from absl import flags

from adx.errors import ConfigError
from launch import costs, jobs, preflight, program, run, service
from launch.commands import CloudError, Command, command, find, remove_each, run_all
from launch.jobs import RETRIED, SECONDS_OF_START, Job, Site
from launch.references import SECRET_MANAGER

DISK_GB = flags.DEFINE_integer('disk_gb', 100, 'Of the boot disk, which holds the image and models.', lower_bound=30)
for shared in (costs, jobs, run, service):
    flags.adopt_module_key_flags(shared)  # for --help

PREEMPTED, REBOOTED = 50001, 50003  # exit codes of Batch's own
ENDED = ('SUCCEEDED', 'FAILED', 'CANCELLED')
ENDING = ('DELETION_IN_PROGRESS', 'CANCELLATION_IN_PROGRESS')
POLL_SECONDS = 5.0
DELETION_SECONDS = 600.0  # that a deletion is waited for


@dataclasses.dataclass(frozen=True)
class Batch:
    """gpu: needed where the machine type does not have GPUs of its own (n1). gpus: of one machine."""

    site: Site
    machine_type: str
    gpu: str = ''
    gpus: int = 0
    disk_gb: int = 100
    named_by_shard = False
    references = SECRET_MANAGER

    def check_place(self) -> None:
        if not self.site.region:
            raise ConfigError('--region is needed, as us-central1')

    def check(self, job: Job) -> None:
        service.check_image(job)
        if job.distributed:
            raise ConfigError('--distributed is not for Batch, where hosts do not find each other; take launch.gke')
        if not self.machine_type:
            raise ConfigError('--machine_type is needed, as g2-standard-4')
        if self.gpu and not self.gpus:
            raise ConfigError(f'--gpu={self.gpu} needs --gpus, how many one machine has')

    def fleet(self, job: Job) -> costs.Fleet:
        devices = job.shards * max(self.gpus, 1)
        unit = costs.machine_unit(self.machine_type, self.gpus)
        return costs.Fleet(unit, job.shards, devices, self.site.area, self.site.provisioning)

    def config(self, job: Job) -> dict[str, Any]:
        """The JSON of the job."""
        policy = {'exitCodes': [*RETRIED, PREEMPTED, REBOOTED]}
        task: dict[str, Any] = {
            'runnables': [{'container': {'imageUri': job.image, 'commands': list(job.arguments)}}],
            'environment': {'variables': dict(job.variables), 'secretVariables': dict(job.secrets)},
            'maxRetryCount': job.retries,
            # What matches no policy fails at once.
            'lifecyclePolicies': [{'action': 'RETRY_TASK', 'actionCondition': policy}],
        }
        if job.max_hours:
            task['maxRunDuration'] = f'{round(job.max_hours * 3600) + SECONDS_OF_START}s'
        group = {'taskSpec': task, 'taskCount': job.shards, 'parallelism': job.shards, 'taskCountPerNode': 1}
        return {
            'taskGroups': [group],
            'allocationPolicy': self._allocation(job),
            'labels': job.all_labels,
            'logsPolicy': {'destination': 'CLOUD_LOGGING'},
        }

    def _allocation(self, job: Job) -> dict[str, Any]:
        # Batch has no field for a key; a template of machines has.
        instance = {'instanceTemplate': template_name(job)} if self.site.kms_key else {'policy': self._machine()}
        where = f'zones/{self.site.zone}' if self.site.zone else f'regions/{self.site.region}'
        account = {'serviceAccount': {'email': self.site.service_account}} if self.site.service_account else {}
        return {
            'location': {'allowedLocations': [where]},
            'instances': [{**instance, **({'installGpuDrivers': True} if self.gpus else {})}],
            'labels': job.all_labels,
            **account,
        }

    def _machine(self) -> dict[str, Any]:
        machine: dict[str, Any] = {
            'machineType': self.machine_type,
            'provisioningModel': 'SPOT' if self.site.spot else 'STANDARD',
            'bootDisk': {'sizeGb': self.disk_gb},
        }
        if self.gpu:
            machine['accelerators'] = [{'type': self.gpu, 'count': self.gpus}]
        if self.site.reservation:
            machine['reservation'] = self.site.reservation
        return machine

    def template(self, job: Job) -> Command:
        """Makes the machines of a job whose disks are under a key."""
        site = self.site
        return command(
            'gcloud', 'compute', 'instance-templates', 'create', template_name(job), *site.words(),
            f'--machine-type={self.machine_type}',
            f'--accelerator=type={self.gpu},count={self.gpus}' if self.gpu else '',
            '--maintenance-policy=TERMINATE' if self.gpus else '',
            '--provisioning-model=SPOT' if site.spot else '',
            '--reservation-affinity=specific' if site.reservation else '',
            f'--reservation={site.reservation}' if site.reservation else '',
            '--image-project=batch-custom-image', '--image-family=batch-cos-stable-official',
            f'--boot-disk-size={self.disk_gb}GB', f'--boot-disk-kms-key={site.kms_key}', f'--labels={job.label_words}',
        )  # fmt: skip

    def submission(self, job: Job) -> list[Command]:
        config = json.dumps(self.config(job), indent=2)
        submit = self._gcloud('jobs', 'submit', job.name, '--config=-', stdin=config)
        return [self.template(job), submit] if self.site.kms_key else [submit]

    def submit(self, job: Job) -> None:
        state = self._state(job)
        if state in ENDING:
            raise CloudError(f'{job.name} is in {state}; run the same command again when it has ended')
        if state is not None and state not in ENDED:
            print(f'{job.name} is there, {state}; nothing was done')
            return
        if state is not None:
            remove_each([self._remove(job)])
            self._wait_until_gone(job)
        remove_each(self._remove_template(job))  # one may be there of a job that was refused
        run_all(self.submission(job))
        print(f'{job.name} is submitted, {job.shards} tasks')

    def _state(self, job: Job) -> str | None:
        return find(self._gcloud('jobs', 'describe', job.name, '--format=value(status.state)'))

    def _wait_until_gone(self, job: Job) -> None:
        """gcloud returns before a job is deleted, and its name is free only then."""
        until = time.monotonic() + DELETION_SECONDS
        while (state := self._state(job)) is not None:
            if time.monotonic() > until:
                raise CloudError(f'{job.name} is still in {state}; run the same command again when it is gone')
            time.sleep(POLL_SECONDS)

    def listing(self) -> list[Command]:
        return [self._gcloud('jobs', 'list', '--filter=labels.app=adx')]

    def logs(self, job: Job) -> list[Command]:
        query = f'labels."adx-job"="{job.name}"'  # Batch puts the labels of a job on what it logs
        shown = '--format=value(timestamp,labels.task_id,textPayload)'
        read = command('gcloud', 'logging', 'read', query, shown, '--order=asc', '--freshness=7d', *self.site.words())
        return [self._gcloud('tasks', 'list', f'--job={job.name}'), read]

    def cancel(self, job: Job) -> list[Command]:
        return [self._gcloud('jobs', 'cancel', job.name, '--quiet')]

    def delete(self, job: Job) -> list[Command]:
        return [self._remove(job), *self._remove_template(job)]

    def _remove(self, job: Job) -> Command:
        return self._gcloud('jobs', 'delete', job.name, '--quiet')

    def _remove_template(self, job: Job) -> list[Command]:
        words = ('instance-templates', 'delete', template_name(job), '--quiet', *self.site.words())
        return [command('gcloud', 'compute', *words)] if self.site.kms_key else []

    def preflight(self, job: Job) -> str:
        return preflight.text(
            preflight.Needs(
                apis=('batch', 'compute'),
                roles=(
                    'roles/batch.jobsEditor',
                    'roles/iam.serviceAccountUser on the service account',
                    'roles/logging.viewer',
                    *(('roles/compute.instanceAdmin.v1 for the template',) if self.site.kms_key else ()),
                ),
                job_roles=('roles/batch.agentReporter', 'roles/logging.logWriter', 'roles/artifactregistry.reader'),
                key_users=('the service agent of Compute Engine',),
                quotas=(preflight.compute_quotas(self.site),),
            ),
            self.site,
            job,
        )

    def budget_note(self) -> str:
        return 'a machine ends with its tasks, a task that hangs half an hour later; disks come on top'

    def _gcloud(self, kind: str, verb: str, *words: str, stdin: str = '') -> Command:
        return command('gcloud', 'batch', kind, verb, *words, *self.site.words(location=True), stdin=stdin)


def template_name(job: Job) -> str:
    return f'adx-{job.name}'


def main() -> None:
    site = jobs.site_from_flags()
    machine = jobs.check_pattern('machine_type', jobs.MACHINE_TYPE.value)
    gpu = jobs.check_pattern('gpu', jobs.GPU.value)
    service.carry_out(Batch(site, machine, gpu, jobs.GPUS.value, DISK_GB.value))


if __name__ == '__main__':
    program.start(main, compiles=False)
