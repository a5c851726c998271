"""The JobSet of a job: shards are pods of one indexed Job, or the hosts of one program are."""

from __future__ import annotations

from typing import Any

from launch.commands import escape
from launch.jobs import RETRIED, SECONDS_OF_START, Job

API = 'jobset.x-k8s.io/v1alpha2'
PORT = 8476  # of the coordinator of one program
GRACE_SECONDS = 60
DISRUPTED = {'type': 'DisruptionTarget', 'status': 'True'}  # preempted, drained or evicted


def jobset(job: Job, pod: dict[str, Any], namespace: str, on_tpu: bool) -> dict[str, Any]:
    """pod: where and on what it runs, as fields of a pod's spec; resources: those of its container."""
    labels = job.all_labels
    one = {'name': group(job), 'replicas': 1, 'template': job_template(job, pod, on_tpu)}
    spec: dict[str, Any] = {'replicatedJobs': [one], 'failurePolicy': {'maxRestarts': 0}}
    metadata: dict[str, Any] = {'name': job.name, 'namespace': namespace, 'labels': labels}
    if job.distributed:
        final = {'name': 'final', 'action': 'FailJobSet', 'onJobFailureReasons': ['PodFailurePolicy']}
        spec['failurePolicy'] = {'maxRestarts': job.retries, 'rules': [final]}
        if on_tpu:  # all hosts in one slice, and no other job on it
            metadata['annotations'] = {'alpha.jobset.sigs.k8s.io/exclusive-topology': 'cloud.google.com/gke-nodepool'}
    return {'apiVersion': API, 'kind': 'JobSet', 'metadata': metadata, 'spec': spec}


def group(job: Job) -> str:
    return 'hosts' if job.distributed else 'shards'


def job_template(job: Job, pod: dict[str, Any], on_tpu: bool) -> dict[str, Any]:
    """A batch/v1 Job without kind: what JobSet makes its Jobs of."""
    count = job.hosts if job.distributed else job.shards
    spec: dict[str, Any] = {
        'completionMode': 'Indexed',
        'completions': count,
        'parallelism': count,
        'podFailurePolicy': {'rules': _rules(job)},
        'template': {'metadata': {'labels': job.all_labels}, 'spec': _pod(job, pod, on_tpu)},
    }
    if job.distributed:
        spec['backoffLimit'] = 0  # one host down: the JobSet starts all of them again
    else:
        spec['backoffLimitPerIndex'] = job.retries
        spec['maxFailedIndexes'] = count  # one shard down: the others go on
    if job.max_hours:
        attempts = 1 if job.distributed else job.attempts
        spec['activeDeadlineSeconds'] = attempts * (round(job.max_hours * 3600) + SECONDS_OF_START)
    return {'metadata': {'labels': job.all_labels}, 'spec': spec}


def _rules(job: Job) -> list[dict[str, Any]]:
    """Only what can continue is tried again; a disruption counts as an attempt only where attempts are a budget."""
    disrupted = 'Count' if job.distributed or job.max_hours else 'Ignore'
    final = 'FailJob' if job.distributed else 'FailIndex'
    codes = {'operator': 'NotIn', 'values': list(RETRIED)}
    return [{'action': disrupted, 'onPodConditions': [DISRUPTED]}, {'action': final, 'onExitCodes': codes}]


def _pod(job: Job, pod: dict[str, Any], on_tpu: bool) -> dict[str, Any]:
    fields = {name: value for name, value in pod.items() if name != 'resources'}
    variables: list[dict[str, Any]] = [{'name': name, 'value': escape(value)} for name, value in job.variables.items()]
    if not job.distributed:
        # Kubernetes says the index of a pod, not how many there are.
        variables.append({'name': 'JOB_COMPLETIONS', 'value': str(job.shards)})
    for name, reference in job.secrets.items():
        secret, _, key = reference.partition('/')
        variables.append({'name': name, 'valueFrom': {'secretKeyRef': {'name': secret, 'key': key}}})
    container = {
        'name': 'adx',
        'image': job.image,
        'args': [*map(escape, job.arguments), *_coordination(job, on_tpu)],
        'env': variables,
        'resources': pod['resources'],
    }
    return {
        **fields,
        'restartPolicy': 'Never',  # policies for failed pods want it
        'terminationGracePeriodSeconds': GRACE_SECONDS,
        'automountServiceAccountToken': False,
        'containers': [container],
    }


def _coordination(job: Job, on_tpu: bool) -> list[str]:
    if not job.distributed or on_tpu:  # on TPUs JAX finds the other hosts
        return []
    first = f'{job.name}-hosts-0-0.{job.name}:{PORT}'
    return [f'--coordinator={first}', f'--num_processes={job.hosts}', '--process_id=$(JOB_COMPLETION_INDEX)']
