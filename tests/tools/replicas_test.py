"""What a second replica adds: of replicas that are played and, in the longer test, of real ones."""

from __future__ import annotations

import os

import pytest
from absl.testing import flagsaver

from tools.bench import replicas


def test_the_slower_of_two_ends_the_work():
    alone = [{'tokens': 100, 'seconds': 2.0}, {'tokens': 300, 'seconds': 2.0}]
    together = [{'tokens': 100, 'seconds': 2.5}, {'tokens': 300, 'seconds': 4.0}]
    # 400 tokens in 4 s, and 50 + 150 a second alone.
    assert replicas.efficiency(alone, together) == pytest.approx(0.5)
    assert replicas.efficiency(alone, alone) == 1


def test_each_works_alone_before_both_do():
    told = []

    class Played:
        """Takes 2 s while it is alone and `crowded` while the other works: the third and fourth time."""

        def __init__(self, crowded):
            self.crowded = crowded

        def tell(self):
            told.append(self.crowded)

        def read(self):
            return {'tokens': 100, 'seconds': 2.0 if len(told) % 4 else self.crowded}

    assert replicas.measure([Played(4.0), Played(2.5)], 2) == pytest.approx([0.5, 0.5])
    assert told == [4.0, 2.5, 4.0, 2.5] * 2


@pytest.mark.slow
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason='two replicas want a core each')
def test_a_trial_runs_two_processes_and_keeps_nothing(monkeypatch, capsys):
    replicas.flags.FLAGS.mark_as_parsed()
    monkeypatch.setattr(replicas.figures, 'append', None)
    with flagsaver.flagsaver(trial=True, worker=None):
        replicas.main()
    assert 'efficiency_2: [' in capsys.readouterr().out
