"""Runs a job on a Slurm cluster, one task of an array a shard.

With --distributed it is one program across --hosts:

    python -m launch.slurm --name=poe --config=configs/smollm2_poe.py --workdir=/shared/poe --shards=8 --gpus=1

It runs this checkout, which all nodes must see, with --python. The flags of launch.run mean what they mean there.
--dry_run prints the script that sbatch is given. The same command again continues a job that ended.
Exit codes: 0 done, 2 flags or config, 3 input, 69 Slurm refused.
"""

from __future__ import annotations

import dataclasses
import pathlib
import re
import shlex
import sys

from absl import flags

from adx.errors import ConfigError
from launch import commands, costs, jobs, program, run, service
from launch.commands import Command, command, run_all
from launch.jobs import RETRIED, Job, Site

PARTITION = flags.DEFINE_string('partition', '', 'Of the cluster; its own default if empty.')
TIME = flags.DEFINE_string('time', '', "The time limit of one attempt, as 1-12:00:00; the partition's if empty.")
PYTHON = flags.DEFINE_string('python', sys.executable, 'The Python that has adx and its libraries, on every node.')
for shared in (costs, jobs, run, service):
    flags.adopt_module_key_flags(shared)  # for --help

SECONDS_OF_NOTICE = 120  # before the time limit kills


@dataclasses.dataclass(frozen=True)
class Slurm:
    """gpus: of one task. directory: the checkout."""

    site: Site
    gpus: int = 0
    partition: str = ''
    time: str = ''
    python: str = sys.executable
    directory: str = ''
    named_by_shard = False
    references = (r'/[-\w./]+', '/path/of/a/file')

    def check_place(self) -> None:
        """The cluster is that of this host."""

    def check(self, job: Job) -> None:
        site = self.site
        if job.image or site.project or site.region or site.zone or site.spot or site.reservation:
            raise ConfigError('--image and the flags of a cloud are not for Slurm; it runs --python in this checkout')
        if site.kms_key:
            raise ConfigError(
                "--kms_key is not for Slurm: its disks are the cluster's, and sbatch takes no key; leave it out"
            )
        for flag, value, pattern in (('partition', self.partition, r'[-\w]*'), ('time', self.time, r'[-:\d]*')):
            if not re.fullmatch(pattern, value):
                raise ConfigError(f'--{flag}={value!r} is not allowed; it must match {pattern}')
        if re.search(r'[\n\r]', self.directory + self.python):
            raise ConfigError('the checkout and --python must have no line break in their names')

    def fleet(self, job: Job) -> costs.Fleet:
        tasks = job.shards * job.hosts
        return costs.Fleet(f'slurm/{self.partition}', tasks, tasks * max(self.gpus, 1), 'site', 'on_demand')

    def script(self, job: Job) -> str:
        """Batch script: runs launch.run, and is queued again where that can continue."""
        directives = {
            'job-name': job.name,
            'comment': job.label_words,
            'partition': self.partition,
            'time': self.time,
            'gpus-per-task': str(self.gpus) if self.gpus else '',
            'nodes': str(job.hosts) if job.distributed else '',
            'ntasks': str(job.hosts),
            'array': '' if job.distributed else f'0-{job.shards - 1}',
            # To the steps, so that the program has the time to stop.
            'signal': f'TERM@{SECONDS_OF_NOTICE}',
            'output': f'{job.name}-%j.log' if job.distributed else f'{job.name}-%A_%a.log',
            'open-mode': 'append',
        }
        lines = ['#!/usr/bin/env bash']
        lines += [f'#SBATCH --{name}={value}' for name, value in directives.items() if value]
        lines += ['#SBATCH --requeue', 'set -euo pipefail', f'cd {shlex.quote(self.directory)}']
        if job.distributed and self.gpus:  # or JAX takes the one GPU of the task's number on its host
            lines.append(f'export JAX_LOCAL_DEVICE_IDS={",".join(map(str, range(self.gpus)))}')
        lines += [f'export {name}={shlex.quote(value)}' for name, value in job.variables.items()]
        for name, path in job.secrets.items():
            lines += [f'{name}="$(cat {shlex.quote(path)})"', f'export {name}']
        return '\n'.join([*lines, *self._steps(job)]) + '\n'

    def _steps(self, job: Job) -> list[str]:
        # Each task of the array is a job of its own in which SLURM_PROCID is 0.
        codes = '|'.join(map(str, RETRIED))
        start = ' '.join([shlex.join([self.python, '-m', *job.arguments]), *job.share('"$SLURM_ARRAY_TASK_ID"')])
        # A job that was cancelled is not running any more and stays cancelled.
        state = '"$(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%T)" == RUNNING'
        return [
            'code=0',
            f'srun {start} || code=$?',
            'case "$code" in',
            f'  {codes})',
            f'    if (( ${{SLURM_RESTART_COUNT:-0}} < {job.retries} )) && [[ {state} ]]; then',
            '      scontrol requeue "$SLURM_JOB_ID"',
            '    fi ;;',
            'esac',
            'exit "$code"',
        ]

    def submission(self, job: Job) -> list[Command]:
        return [command('sbatch', stdin=self.script(job))]

    def submit(self, job: Job) -> None:
        there = commands.run(command('squeue', '--me', '--noheader', f'--name={job.name}', '--format=%i %T'))
        if there:
            print(f'{job.name} is there, {", ".join(there.splitlines())}; nothing was done')
            return
        run_all(self.submission(job))

    def listing(self) -> list[Command]:
        return [command('squeue', '--me', '--format=%i %j %T %M %R')]

    def logs(self, job: Job) -> list[Command]:
        pattern = re.compile(rf'{job.name}-\d+(_\d+)?\.log')  # of a job alone or of an array; poe-2 is another's name
        paths = sorted(path for path in pathlib.Path(self.directory).glob('*.log') if pattern.fullmatch(path.name))
        return [command('tail', '--lines=200', '--', *map(str, paths))] if paths else []

    def cancel(self, job: Job) -> list[Command]:
        return [command('scancel', '--me', f'--name={job.name}')]

    def delete(self, job: Job) -> list[Command]:
        return self.cancel(job)  # there is nothing else that Slurm keeps

    def preflight(self, job: Job) -> str:
        return '\n'.join([
            '# Partitions, their time limits and GPUs',
            'sinfo --format="%P %a %l %D %G"',
            '# Your limits',
            'sacctmgr show associations user="$USER" format=account,partition,maxjobs,grptres',
            '# All nodes see the checkout, --python and --workdir; you alone may read the files of --secret',
            shlex.join(['ls', '-l', self.python, *job.secrets.values()]),
        ])  # fmt: skip

    def budget_note(self) -> str:
        return 'the allocation ends with the task'


def main() -> None:
    place = str(pathlib.Path.cwd())
    service.carry_out(Slurm(jobs.site_from_flags(), jobs.GPUS.value, PARTITION.value, TIME.value, PYTHON.value, place))


if __name__ == '__main__':
    program.start(main, compiles=False)
