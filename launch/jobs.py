"""What a launcher starts and where: the flags of all launchers beside launch.run's."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags

from adx.errors import ConfigError, Interrupted, StorageError
from launch import run
from launch.references import parse_environment, parse_references, refuse_secrets

RETRIED = (StorageError.exit_code, Interrupted.exit_code)  # of launch.run: the same command continues
MOST_RETRIES = 10  # GCP Batch allows no more
SECONDS_OF_START = 1800  # of an attempt: machine, drivers and image, beside what --max_hours counts

NAME = flags.DEFINE_string('name', None, 'What the service calls the job; the same name continues it.')
IMAGE = flags.DEFINE_string('image', '', 'The container image, built of launch/Dockerfile.')
SHARDS = flags.DEFINE_integer('shards', 1, 'How many processes share the requests, each on its own.', lower_bound=1)
HOSTS = flags.DEFINE_integer('hosts', 1, 'With --distributed: hosts of the one program.', lower_bound=1)
RETRIES = flags.DEFINE_integer(
    'retries', MOST_RETRIES, 'Of a shard that was interrupted.', lower_bound=0, upper_bound=MOST_RETRIES
)
ENV = flags.DEFINE_multi_string('env', [], 'NAME=value for the job; no secrets. May be repeated.')
SECRET = flags.DEFINE_multi_string('secret', [], 'NAME:reference to where a secret is. May be repeated.')
LABEL = flags.DEFINE_multi_string('label', [], 'key=value on everything that is created. May be repeated.')
PROJECT = flags.DEFINE_string('project', '', "The cloud project; gcloud's own if empty.")
REGION = flags.DEFINE_string('region', '', 'Where to run, as us-central1.')
ZONE = flags.DEFINE_string('zone', '', 'Where to run, as us-central1-a.')
SPOT = flags.DEFINE_bool('spot', False, 'Spare capacity: cheaper, and taken back at any moment.')
RESERVATION = flags.DEFINE_string('reservation', '', 'Reserved capacity, by its name.')
SERVICE_ACCOUNT = flags.DEFINE_string('service_account', '', 'Whom the job acts as.')
KMS_KEY = flags.DEFINE_string('kms_key', '', 'Your own key for the disks: projects/.../cryptoKeys/...')
MACHINE_TYPE = flags.DEFINE_string('machine_type', '', 'Of a host with GPUs or CPUs, as g2-standard-8.')
GPU = flags.DEFINE_string('gpu', '', 'The kind of GPU, where the machine type does not say it.')
GPUS = flags.DEFINE_integer('gpus', 0, 'GPUs of one host.', lower_bound=0)
ACCELERATOR_TYPE = flags.DEFINE_string('accelerator_type', '', 'The TPU slice of one shard, as v5litepod-8.')

# The launcher says these itself.
OWN = ('shard', 'num_shards', 'coordinator', 'process_id', 'num_processes', 'status')
RUN_MODULES = ('launch.run', 'launch.joining', 'launch.environment')  # whose flags the job is given
SHARED_STAGES = ({'generate', 'rewrite'}, {'distil', 'assess'})  # in one job; the latter want traces of all shards
PATTERNS = {
    'name': (r'[a-z]([-a-z0-9]{0,38}[a-z0-9])?', 'small letters, digits and dashes, at most 40'),
    'image': (r'[a-z0-9][-a-z0-9._/:@]+', 'registry/path/image:tag'),
    'project': (r'[a-z][-a-z0-9.:]{4,62}', 'an id as my-project'),
    'region': (r'[a-z]+-[a-z]+\d+', 'a region as us-central1'),
    'zone': (r'[a-z]+-[a-z]+\d+-[a-z]', 'a zone as us-central1-a'),
    'reservation': (r'[a-z][-a-z0-9/]*', 'the name of a reservation'),
    'service_account': (r'[a-z0-9][-a-z0-9.@]*', 'an address, or on Kubernetes a name'),
    'kms_key': (
        r'projects/[-a-z0-9.:]+/locations/[-a-z0-9]+/keyRings/[-\w]+/cryptoKeys/[-\w]+',
        'projects/P/locations/L/keyRings/R/cryptoKeys/K',
    ),
    'machine_type': (r'[a-z][-a-z0-9]+', 'a machine type as g2-standard-8'),
    'gpu': (r'[a-z][-a-z0-9]+', 'an accelerator as nvidia-tesla-t4'),
}
DIGEST = r'@sha256:[0-9a-f]{64}$'  # of an image: not a secret
LABEL_KEY = r'[a-z]([-_a-z0-9]{0,61}[a-z0-9])?'
LABEL_VALUE = r'[a-z0-9]([-_a-z0-9]{0,61}[a-z0-9])?'  # what both Google Cloud and Kubernetes allow


@dataclasses.dataclass(frozen=True)
class Site:
    """Where things run, in which capacity, for whom and under which key; '' leaves it to the service."""

    project: str = ''
    region: str = ''
    zone: str = ''
    spot: bool = False
    reservation: str = ''
    service_account: str = ''
    kms_key: str = ''

    @property
    def area(self) -> str:
        """The region, that of the zone if only that is given."""
        return self.region or self.zone.rpartition('-')[0]

    @property
    def provisioning(self) -> str:
        return 'reservation' if self.reservation else 'spot' if self.spot else 'on_demand'

    def words(self, *, zone: bool = False, location: bool = False) -> tuple[str, ...]:
        """The flags by which gcloud knows the place."""
        place = f'--zone={self.zone}' if zone else f'--location={self.region or self.zone}' if location else ''
        project = f'--project={self.project}' if self.project else ''
        return tuple(word for word in (project, place) if word)


@dataclasses.dataclass(frozen=True)
class Job:
    """flags: of launch.run. retries: of a shard that ended with one of RETRIED. max_hours: of one attempt, 0 no limit.

    secrets: environment variable -> reference. hosts: processes of one program, if `distributed`.
    """

    name: str
    image: str = ''
    flags: tuple[str, ...] = ()
    shards: int = 1
    distributed: bool = False
    hosts: int = 1
    retries: int = MOST_RETRIES
    max_hours: float = 0.0
    variables: Mapping[str, str] = dataclasses.field(default_factory=dict)
    secrets: Mapping[str, str] = dataclasses.field(default_factory=dict)
    labels: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def arguments(self) -> tuple[str, ...]:
        """Of `python -m`, without what is different from shard to shard, which may follow."""
        program = ('launch.parent', '--') if self.distributed else ('launch.run',)
        return (*program, *self.flags, *((f'--max_hours={self.max_hours:g}',) if self.max_hours else ()))

    def share(self, shard: int | str) -> tuple[str, ...]:
        """The flags that are different from shard to shard; one program has none."""
        return () if self.distributed else (f'--shard={shard}', f'--num_shards={self.shards}')

    def shard_name(self, shard: int) -> str:
        """Where each shard is a thing of its own."""
        return f'{self.name}-{shard}'

    @property
    def attempts(self) -> int:
        return self.retries + 1

    @property
    def all_labels(self) -> dict[str, str]:
        return {'app': 'adx', 'adx-job': self.name, **self.labels}

    @property
    def label_words(self) -> str:
        return ','.join(f'{key}={value}' for key, value in self.all_labels.items())


def check_pattern(flag: str, value: str) -> str:
    """The value. Raises ConfigError where it could mean something to a shell or is refused by the service anyway."""
    pattern, allowed = PATTERNS[flag]
    if value and not re.fullmatch(pattern, value):
        raise ConfigError(f'--{flag}={value!r} is not allowed; it must be {allowed}')
    return value


def refuse_values() -> None:
    """Raises ConfigError, which does not show it, for a flag with what looks like a secret's value.

    Called before anything else is said about a flag. What --secret and --env hold is looked at more closely later on.
    """
    for name in flags.FLAGS:
        if flags.FLAGS[name].present and name not in ('secret', 'env'):
            value = flags.FLAGS[name].value
            texts = [str(one) for one in (value if isinstance(value, list) else [value])]
            refuse_secrets(name, [re.sub(DIGEST, '', text) for text in texts])


def site_from_flags() -> Site:
    refuse_values()
    if SPOT.value and RESERVATION.value:
        raise ConfigError('--spot and --reservation exclude each other; give one of them')
    values = {one.name: check_pattern(one.name, one.value) for one in (PROJECT, REGION, ZONE, RESERVATION)}
    account, key = (check_pattern(one.name, one.value) for one in (SERVICE_ACCOUNT, KMS_KEY))
    if ZONE.value and REGION.value and ZONE.value.rpartition('-')[0] != REGION.value:
        raise ConfigError(f'--zone={ZONE.value} is not in --region={REGION.value}; give one of them')
    return Site(**values, spot=SPOT.value, service_account=account, kms_key=key)


def name_from_flags() -> str:
    if not NAME.value:
        raise ConfigError('--name is needed; the same name finds the job again')
    return check_pattern('name', NAME.value)


def from_flags(references: tuple[str, str]) -> Job:
    """The job that the flags describe; references: pattern and example of the service's. Raises ConfigError."""
    _check_run()
    distributed = bool(run.DISTRIBUTED.value)
    if distributed and SHARDS.value > 1:
        raise ConfigError(f'--distributed is one program: --shards={SHARDS.value} must be 1, and --hosts its hosts')
    if HOSTS.value > 1 and not distributed:
        raise ConfigError(f'--hosts={HOSTS.value} is of one program: add --distributed, or give --shards')
    if SHARDS.value > 1:
        _check_shared(run.STAGE_NAMES.value)
    return Job(
        name=name_from_flags(),
        image=check_pattern('image', IMAGE.value),
        flags=run_flags(),
        shards=SHARDS.value,
        distributed=distributed,
        hosts=HOSTS.value,
        retries=RETRIES.value,
        variables=parse_environment(ENV.value),
        secrets=parse_references(SECRET.value, *references),
        labels=_labels(),
    )


def _check_shared(stages: Sequence[str]) -> None:
    alone = [stage for stage in stages if not any(stage in group for group in SHARED_STAGES)]
    if alone:
        raise ConfigError(f'--stages={alone[0]} is the work of one process: --shards={SHARDS.value} must be 1')
    if not any(group.issuperset(stages) for group in SHARED_STAGES):
        apart = ' and '.join(','.join(sorted(group)) for group in SHARED_STAGES)
        raise ConfigError(f'--stages={",".join(stages)} wants the traces of all shards midway: run {apart} one by one')


def run_flags() -> tuple[str, ...]:
    """The flags of launch.run that were given, as its process is to be given them."""
    left_to_job = {'dry_run', 'max_hours', *OWN}
    words: list[str] = []
    by_module = flags.FLAGS.flags_by_module_dict()
    for name in [one.name for module in RUN_MODULES for one in by_module.get(module, ())]:
        if flags.FLAGS[name].present and name not in left_to_job:
            words += _words(name, flags.FLAGS[name].value)
    for word in words:
        flag = word.partition('=')[0]
        if any(ord(character) < 32 for character in word):
            raise ConfigError(f'{flag} holds a line break or another control character; write it in the config')
    return tuple(words)


def _words(name: str, value: Any) -> list[str]:
    if isinstance(value, bool):
        return [f'--{name}' if value else f'--no{name}']
    if name in ('set', 'sweep'):
        return [f'--{name}={one}' for one in value]
    return [f'--{name}={",".join(value) if isinstance(value, list) else value}']


def _check_run() -> None:
    """What a launched process could not do. Raises ConfigError."""
    for name in OWN:
        if flags.FLAGS[name].present:
            raise ConfigError(f'--{name} is not for a launcher, which says that itself; ask launch.run for --status')


def _labels() -> dict[str, str]:
    labels = {}
    for text in LABEL.value:
        key, _, value = text.partition('=')
        if not re.fullmatch(LABEL_KEY, key) or not re.fullmatch(LABEL_VALUE, value):
            raise ConfigError(f'--label={text!r} is not allowed; write key=value in small letters, digits, "-" and "_"')
        labels[key] = value
    return labels
