"""Measures what large pages gain one process with one core: training a student, decoding.

    python -m tools.bench.pages     # appends huge_pages_speedup_cpu to results/training.json and results/decoding.json

XLA takes what a program needs for the time being anew each time it runs, and the system hands it out page by page.
With HUGE_PAGES in its environment a process gets pages of 2 MB instead of 4 KB, where Linux lets it
(/sys/kernel/mm/transparent_hugepage/enabled says madvise or always). Two processes are warm and work in turn: a student
takes steps as tools/bench/training.py has it, the teacher decodes as tools/bench/replicas.py does.
"""

from __future__ import annotations

from absl import flags

from launch import program
from tools.bench import cores, figures

REPEATS = 7
HUGE_PAGES = {'GLIBC_TUNABLES': 'glibc.malloc.hugetlb=1'}
WORK = {'training': 'tools.bench.training', 'decoding': 'tools.bench.replicas'}  # table -> what has such a worker

_WORK = flags.DEFINE_multi_enum('work', list(WORK), list(WORK), 'What they do.')


def main() -> None:
    for work in _WORK.value:
        command, samples = ('-m', WORK[work]), list[float]()
        with cores.started([command]) as usual, cores.started([command], HUGE_PAGES) as huge:
            for _ in range(REPEATS):
                without, with_ = (cores.at_once(one)[0]['seconds'] for one in (usual, huge))
                samples.append(without / with_)
        row = figures.append(
            work, 'huge_pages_speedup_cpu', samples, unit='x', goal='> 1', command='python -m tools.bench.pages'
        )
        print(f'{work}: {row["value"]:.2f} ({row["low"]:.2f} to {row["high"]:.2f})')


if __name__ == '__main__':
    program.start(main)
