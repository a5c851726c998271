"""What an account needs before a job runs, as shell comments and the commands that check it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from launch import run
from launch.commands import Command, command
from launch.jobs import Job, Site


@dataclasses.dataclass(frozen=True)
class Needs:
    """Of one service. apis: without those of storage, logs and images, which all want.

    roles: of who launches. job_roles: of the service account, on the project. key_users: who must be allowed to use
    a key. quotas: commands that show them.
    """

    apis: tuple[str, ...]
    roles: tuple[str, ...]
    job_roles: tuple[str, ...]
    key_users: tuple[str, ...]
    quotas: tuple[Command, ...]


def text(needs: Needs, site: Site, job: Job) -> str:
    """Sections of comments and commands; nothing is run."""
    sections: dict[str, tuple[str, Iterable[Command]]] = {
        'APIs that must be enabled': _apis(needs, site, job),
        'Capacity': _capacity(site),
        'Quotas': ('as many as the job has devices; Spot and reserved capacity have quotas of their own', needs.quotas),
        'Roles of who launches (no more are needed)': _roles(needs.roles, site),
        'Roles of the service account of the job': _job_roles(needs.job_roles, site),
        'The workdir': _bucket(site),
        'Secrets': _secrets(job, site),
        'Keys': _keys(needs, site),
        'Labels, by which bills and lists are filtered': (job.label_words, ()),
    }
    return '\n\n'.join(_section(title, *body) for title, body in sections.items())


def _section(title: str, note: str, commands: Iterable[Command]) -> str:
    return '\n'.join([f'# {title}: {note}' if note else f'# {title}', *map(str, commands)])


def _apis(needs: Needs, site: Site, job: Job) -> tuple[str, list[Command]]:
    names = [*needs.apis, 'artifactregistry', 'logging', 'storage']
    names += ['secretmanager'] if job.secrets else []
    names += ['cloudkms'] if site.kms_key else []
    full = [f'{name}.googleapis.com' for name in names]
    listed = command('gcloud', 'services', 'list', '--enabled', '--format=value(config.name)', *site.words())
    return ' '.join(full), [listed, command('gcloud', 'services', 'enable', *full, *site.words())]


def _capacity(site: Site) -> tuple[str, list[Command]]:
    """Only what is reserved can be looked at beforehand."""
    place = site.zone or site.area or 'no region yet: give --region or --zone'
    kind = {
        'spot': 'Spot, taken back at any moment; the job continues by itself or by the same command',
        'reservation': f'the reservation {site.reservation}',
        'on_demand': 'on demand',
    }[site.provisioning]
    owner, _, name = site.reservation.rpartition('/')  # another project's as projects/P/reservations/R
    project = (f'--project={owner.split("/")[1]}',) if owner.startswith('projects/') else site.words()
    show = ('describe', name, f'--zone={site.zone or "ZONE"}') if name else ('list',)
    return f'{place}, {kind}', [command('gcloud', 'compute', 'reservations', *show, *project)]


def _roles(roles: Iterable[str], site: Site) -> tuple[str, list[Command]]:
    note = f'{", ".join(roles)}; ACCOUNT is what the first command prints'
    shown = [command('gcloud', 'config', 'get-value', 'account'), _granted('ACCOUNT', site)]
    if any('on the service account' in role for role in roles):  # which the policy of the project does not show
        account = site.service_account or 'SERVICE_ACCOUNT'
        shown.append(command('gcloud', 'iam', 'service-accounts', 'get-iam-policy', account, *site.words()))
    return note, shown


def _granted(account: str, site: Site) -> Command:
    """Shows the roles of an account on the project."""
    return command(
        'gcloud', 'projects', 'get-iam-policy', site.project or 'PROJECT', '--flatten=bindings[].members',
        '--format=value(bindings.role)', f'--filter=bindings.members:{account}',
    )  # fmt: skip


def _job_roles(roles: Iterable[str], site: Site) -> tuple[str, list[Command]]:
    if '@' in site.service_account:
        return ', '.join(roles), [_granted(site.service_account, site)]
    # On Kubernetes the flag names one of the cluster, which is bound to one of the cloud.
    note = f'{", ".join(roles)}; SERVICE_ACCOUNT is its address, by default PROJECT_NUMBER-compute@developer'
    return f'{note}.gserviceaccount.com', [_granted('SERVICE_ACCOUNT', site)]


def _bucket(site: Site) -> tuple[str, list[Command]]:
    workdir = run.WORKDIR.value or ''
    if not workdir.startswith('gs://'):
        return 'a directory that every shard sees', []
    bucket = f'gs://{workdir.removeprefix("gs://").split("/")[0]}'
    commands = [command('gcloud', 'storage', 'buckets', 'describe', bucket), command(
        'gcloud', 'storage', 'buckets', 'get-iam-policy', bucket
    )]  # fmt: skip
    if site.kms_key:
        commands.append(
            command('gcloud', 'storage', 'buckets', 'update', bucket, f'--default-encryption-key={site.kms_key}')
        )
    return f'{bucket} in the same region; the service account has roles/storage.objectUser on it alone', commands


def _secrets(job: Job, site: Site) -> tuple[str, list[Command]]:
    if not job.secrets:
        return 'none', []
    managed = [one for one in job.secrets.values() if one.startswith('projects/')]
    names = [one.split('/versions/')[0] for one in managed]
    note = ', '.join(f'{name} is {reference}' for name, reference in job.secrets.items())
    commands = [command('gcloud', 'secrets', 'get-iam-policy', name) for name in names]
    return note + ('; roles/secretmanager.secretAccessor on each of them alone' if managed else ''), commands


def _keys(needs: Needs, site: Site) -> tuple[str, list[Command]]:
    if not site.kms_key:
        return 'the disks and the bucket are under keys of the cloud; --kms_key puts them under yours', []
    users = ', '.join(needs.key_users)
    note = f'roles/cloudkms.cryptoKeyEncrypterDecrypter on the key for {users} and the service agent of Cloud Storage'
    return note, [command('gcloud', 'kms', 'keys', 'get-iam-policy', site.kms_key)]


def compute_quotas(site: Site) -> Command:
    area = site.area or 'REGION'
    return command('gcloud', 'compute', 'regions', 'describe', area, '--format=yaml(quotas)', *site.words())


def of_cluster(site: Site) -> Needs:
    """Of GKE, by JobSet or XPK."""
    return Needs(
        apis=('container', 'compute'),
        roles=('roles/container.developer', 'roles/container.clusterAdmin for a node pool of --kms_key'),
        job_roles=('roles/logging.logWriter', 'roles/artifactregistry.reader'),
        key_users=('the service agent of Compute Engine',),
        quotas=(
            compute_quotas(site),
            command('kubectl', 'get', 'crd', 'jobsets.jobset.x-k8s.io'),
            command('kubectl', 'get', 'nodes', '--label-columns=cloud.google.com/gke-nodepool'),
        ),
    )
