"""TPU slices by the names that gcloud gives them."""

from __future__ import annotations

import dataclasses
import re

from adx.errors import ConfigError
from launch import costs, jobs

# Sides of a slice by its chips. Two-dimensional for v5e and v6e.
FLAT = {1: '1x1', 4: '2x2', 8: '2x4', 16: '4x4', 32: '4x8', 64: '8x8', 128: '8x16', 256: '16x16'}
DEEP = {4: '2x2x1', 8: '2x2x2', 16: '2x2x4', 32: '2x4x4', 64: '4x4x4', 128: '4x4x8', 256: '4x8x8'}


@dataclasses.dataclass(frozen=True)
class Generation:
    """unit: what its chip is called in the price file. cores: that its accelerator types count per chip.

    selector, machine: what GKE calls its node pools and machines. runtime: the image of a TPU VM.
    """

    unit: str
    cores: int
    topologies: dict[int, str]
    chips_of_one_host: int
    selector: str
    machine: str
    runtime: str


GENERATIONS = {
    'v4': Generation('v4', 2, DEEP, 4, 'tpu-v4-podslice', 'ct4p-hightpu', 'tpu-ubuntu2204-base'),
    'v5litepod': Generation('v5e', 1, FLAT, 8, 'tpu-v5-lite-podslice', 'ct5lp-hightpu', 'v2-alpha-tpuv5-lite'),
    'v5p': Generation('v5p', 2, DEEP, 4, 'tpu-v5p-slice', 'ct5p-hightpu', 'v2-alpha-tpuv5'),
    'v6e': Generation('v6e', 1, FLAT, 8, 'tpu-v6e-slice', 'ct6e-standard', 'v2-alpha-tpuv6e'),
}


@dataclasses.dataclass(frozen=True)
class Slice:
    """chips: of all hosts together."""

    accelerator_type: str
    generation: Generation
    chips: int

    @property
    def hosts(self) -> int:
        return 1 if self.chips <= self.generation.chips_of_one_host else self.chips // 4

    @property
    def chips_per_host(self) -> int:
        return self.chips // self.hosts

    def check_hosts(self, job: jobs.Job) -> None:
        """Raises ConfigError for a job of shards that would each have several hosts."""
        if self.hosts > 1 and not job.distributed:
            raise ConfigError(
                f'--accelerator_type={self.accelerator_type} has {self.hosts} hosts; add --distributed, '
                'or give each shard a slice of one host'
            )

    def fleet(self, job: jobs.Job, site: jobs.Site) -> costs.Fleet:
        """Of one slice a shard."""
        chips = job.shards * self.chips
        return costs.Fleet(self.generation.unit, chips, chips, site.area, site.provisioning)

    @property
    def topology(self) -> str:
        return self.generation.topologies[self.chips]

    @property
    def machine_type(self) -> str:
        return f'{self.generation.machine}-{self.chips_per_host}t'


def from_flags() -> Slice | None:
    return parse(jobs.ACCELERATOR_TYPE.value) if jobs.ACCELERATOR_TYPE.value else None


def parse(accelerator_type: str) -> Slice:
    """Raises ConfigError for what is no slice of a known generation."""
    found = re.fullmatch(r'([a-z0-9]+)-(\d+)', accelerator_type)
    generation = GENERATIONS.get(found[1]) if found else None
    if found is None or generation is None:
        raise ConfigError(
            f'--accelerator_type={accelerator_type} is not known; it is one of {sorted(GENERATIONS)} and a size, '
            'as in v5litepod-8'
        )
    chips, rest = divmod(int(found[2]), generation.cores)
    if rest or chips not in generation.topologies:
        sizes = [f'{found[1]}-{chips * generation.cores}' for chips in generation.topologies]
        raise ConfigError(f'--accelerator_type={accelerator_type} has no such size; the sizes are {sizes}')
    return Slice(accelerator_type, generation, chips)
