"""Processes with cores of their own: what they are told, what they answer, and what becomes of one that dies."""

from __future__ import annotations

import os

import pytest

from adx.errors import ConfigError
from tools.bench import cores

ANSWERS = """
import os, sys
from tools.bench import cores
cores.serve(lambda: {'told': sys.argv[1:], 'cores': sorted(os.sched_getaffinity(0)), 'process': os.getpid()})
"""
DIES = """
import sys
from tools.bench import cores
cores.serve(lambda: sys.exit(3))
"""


def test_each_has_a_number_and_a_core_of_its_own():
    count = min(2, len(cores.available()))
    with cores.started([('-c', ANSWERS)] * count) as replicas:
        first, second = cores.at_once(replicas), cores.at_once(replicas)
    assert [done['told'] for done in first] == [[f'--worker={i}'] for i in range(count)]
    assert [done['cores'] for done in first] == [[core] for core in cores.available()[:count]]
    assert first == second  # the same processes
    assert all(replica._process.poll() is not None for replica in replicas)


def test_a_replica_has_what_it_is_given_beside_this_environment(monkeypatch):
    monkeypatch.setenv('HERE', 'a')
    tells = "import os; from tools.bench import cores; cores.serve(lambda: dict(os.environ))"
    with cores.started([('-c', tells)], {'GIVEN': 'b'}) as replicas:
        [done] = cores.at_once(replicas)
    assert (done['HERE'], done['GIVEN']) == ('a', 'b')
    assert 'GIVEN' not in os.environ


def test_one_that_dies_is_an_error():
    with cores.started([('-c', DIES)]) as replicas, pytest.raises(ConfigError, match='ended with 3'):
        cores.at_once(replicas)


def test_fewer_cores_than_replicas_are_refused():
    want = len(cores.available()) + 1
    with pytest.raises(ConfigError, match=f'{want} replicas want a core each'), cores.started([()] * want):
        pass
