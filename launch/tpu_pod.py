"""Runs a job on TPU VMs that are had by queued resources, one slice a shard:

    python -m launch.tpu_pod --name=poe --config=configs/smollm2_poe.py --workdir=gs://bucket/poe \\
      --image=us-docker.pkg.dev/project/adx/run:1 --zone=us-west4-a --accelerator_type=v5litepod-8 --shards=2 --spot

A slice of several hosts takes --distributed: one program across them. The flags of launch.run mean what they mean
there. --dry_run prints the commands, device-hours and cost. The same command again starts what has become active,
makes anew what was taken back, and leaves alone what runs.
Exit codes: 0 all shards run, 2 flags or config, 3 input, 69 the service refused, 75 shards wait in the queue.
"""

from __future__ import annotations

import dataclasses
import shlex
import time

from absl import flags

from adx.errors import ConfigError, Interrupted
from launch import commands, costs, jobs, preflight, program, run, service, tpus
from launch.commands import Command, command, find, remove_each, run_all
from launch.jobs import RETRIED, Job, Site
from launch.references import SECRET_MANAGER

RUNTIME = flags.DEFINE_string('runtime_version', '', "Of the TPU VM; the generation's own if empty.")
WAIT = flags.DEFINE_float('wait_minutes', 0.0, 'Wait so long for slices to become active.', lower_bound=0.0)
for shared in (costs, jobs, run, service):
    flags.adopt_module_key_flags(shared)  # for --help

GONE = ('SUSPENDED', 'FAILED')  # no slice comes of these any more
POLL_SECONDS = 30.0


@dataclasses.dataclass(frozen=True)
class TpuPod:
    """slice_: None where no job is started. runtime: the image of the machines; '' takes that of the generation."""

    site: Site
    slice_: tpus.Slice | None
    runtime: str = ''
    wait_minutes: float = 0.0
    named_by_shard = True
    references = SECRET_MANAGER

    def check_place(self) -> None:
        if not self.site.zone:
            raise ConfigError('--zone is needed, one that has the accelerator type, as us-west4-a')

    def check(self, job: Job) -> None:
        service.check_image(job)
        if not self.slice_:
            raise ConfigError('--accelerator_type is needed, as v5litepod-8')
        self.slice_.check_hosts(job)

    def fleet(self, job: Job) -> costs.Fleet:
        assert self.slice_ is not None
        return self.slice_.fleet(job, self.site)

    def create(self, job: Job, shard: int) -> Command:
        assert self.slice_ is not None
        site, node = self.site, job.shard_name(shard)
        return self._resource(
            'create', node, f'--node-id={node}', f'--accelerator-type={self.slice_.accelerator_type}',
            f'--runtime-version={self.runtime or self.slice_.generation.runtime}',
            '--spot' if site.spot else '',
            f'--reservation={site.reservation}' if site.reservation else '',
            f'--service-account={site.service_account}' if site.service_account else '',
            f'--boot-disk=kms-key={site.kms_key}' if site.kms_key else '',
            f'--labels={job.label_words}', '--async', alpha=bool(site.reservation),
        )  # fmt: skip

    def start(self, job: Job, shard: int) -> Command:
        return self._ssh(job.shard_name(shard), worker_script(job, shard))

    def submission(self, job: Job) -> list[Command]:
        shards = range(job.shards)
        return [self.create(job, shard) for shard in shards] + [self.start(job, shard) for shard in shards]

    def submit(self, job: Job) -> None:
        until = time.monotonic() + self.wait_minutes * 60
        waiting = set(range(job.shards))
        while True:
            for shard in sorted(waiting):
                if self._advance(job, shard):
                    waiting.discard(shard)
            if not waiting:
                return
            if time.monotonic() > until:
                raise Interrupted(
                    f'{len(waiting)} of {job.shards} slices are not active yet; the same command again starts them then'
                )
            time.sleep(POLL_SECONDS)

    def _advance(self, job: Job, shard: int) -> bool:
        """Does what is next for a shard; whether it runs."""
        node = job.shard_name(shard)
        state = find(self._resource('describe', node, '--format=value(state.state)'))
        if state == 'ACTIVE':
            print(commands.run(self.start(job, shard)))
            return True
        if state in GONE:
            remove_each([self._remove(node)])
            state = None
        if state is None:
            run_all([self.create(job, shard)])
        print(f'{node}: {state or "asked for"}')
        return False

    def listing(self) -> list[Command]:
        return [self._resource('list')]

    def logs(self, job: Job) -> list[Command]:
        show = f'sudo journalctl --unit={unit_name(job)} --no-pager --lines=200'
        return [self._ssh(job.shard_name(shard), show) for shard in range(job.shards)]

    def cancel(self, job: Job) -> list[Command]:
        stop = f'sudo systemctl stop {unit_name(job)} || [ $? -eq 5 ]'  # 5: it has ended
        return [self._ssh(job.shard_name(shard), stop) for shard in range(job.shards)]

    def delete(self, job: Job) -> list[Command]:
        return [self._remove(job.shard_name(shard)) for shard in range(job.shards)]

    def preflight(self, job: Job) -> str:
        consumer = f'--consumer=projects/{self.site.project or "PROJECT"}'
        quota = command('gcloud', 'alpha', 'services', 'quota', 'list', '--service=tpu.googleapis.com', consumer)
        types = ('gcloud', 'compute', 'tpus', 'accelerator-types', 'list', *self.site.words(zone=True))
        return preflight.text(
            preflight.Needs(
                apis=('tpu', 'compute'),
                roles=(
                    'roles/tpu.admin',
                    'roles/iam.serviceAccountUser on the service account',
                    'roles/compute.osAdminLogin',
                ),
                job_roles=('roles/logging.logWriter', 'roles/artifactregistry.reader'),
                key_users=('the service agent of Cloud TPU', 'the service agent of Compute Engine'),
                quotas=(quota, command(*types)),
            ),
            self.site,
            job,
        )

    def budget_note(self) -> str:
        return 'the slices themselves are paid for until --delete'

    def _remove(self, node: str) -> Command:
        return self._resource('delete', node, '--force', '--quiet')

    def _resource(self, verb: str, *words: str, alpha: bool = False) -> Command:
        """alpha: for the flags that only that track of gcloud has."""
        track = 'alpha' if alpha else ''
        return command(
            'gcloud', track, 'compute', 'tpus', 'queued-resources', verb, *words, *self.site.words(zone=True)
        )

    def _ssh(self, node: str, script: str) -> Command:
        words = (node, '--worker=all', f'--command={script}', *self.site.words(zone=True))
        return command('gcloud', 'compute', 'tpus', 'tpu-vm', 'ssh', *words)


def unit_name(job: Job) -> str:
    return f'adx-{job.name}'


def worker_script(job: Job, shard: int) -> str:
    """Starts the container on one worker, as a unit that systemd starts again where launch.run can continue."""
    properties = {
        'RestartForceExitStatus': ' '.join(map(str, RETRIED)),
        'RestartSec': '30',
        'StartLimitIntervalSec': '365d',
        'StartLimitBurst': str(job.attempts),
        'TimeoutStopSec': '60',
    }
    words = ['sudo', 'systemd-run', f'--unit={unit_name(job)}', '--setenv=HOME=/root']  # where docker's login is
    words += [f'--property={name}={value}' for name, value in properties.items()]
    start = shlex.join([*words, '/bin/bash', '-c', commands.escape(container_script(job, shard))])
    registry = job.image.partition('/')[0]
    unit = shlex.quote(unit_name(job))
    return '\n'.join([
        'set -euo pipefail',
        # Between two attempts it is activating.
        f'case "$(systemctl is-active {unit} || true)" in',
        '  active | activating) echo "$HOSTNAME: runs already"; exit 0 ;;',
        'esac',
        f'sudo systemctl reset-failed {unit} 2>/dev/null || true',
        f'sudo gcloud auth configure-docker {shlex.quote(registry)} --quiet',
        start,
    ])  # fmt: skip


def container_script(job: Job, shard: int) -> str:
    """Runs launch.run in the container, which gets the signals of the unit. Secrets are read here, written nowhere."""
    lines = ['set -euo pipefail']
    for name, reference in job.secrets.items():
        lines.append(f'{name}="$(gcloud secrets versions access {shlex.quote(reference)})"')
        lines.append(f'export {name}')
    words = ['docker', 'run', '--rm', f'--name={unit_name(job)}', '--privileged', '--net=host']
    words += [f'--env={name}={value}' for name, value in job.variables.items()]
    words += [f'--env={name}' for name in job.secrets]
    return '\n'.join([*lines, f'exec {shlex.join([*words, job.image, *job.arguments, *job.share(shard)])}'])


def main() -> None:
    service.carry_out(TpuPod(jobs.site_from_flags(), tpus.from_flags(), RUNTIME.value, WAIT.value))


if __name__ == '__main__':
    program.start(main, compiles=False)
