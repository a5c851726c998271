"""Kills at every write of the stages that measure and report, of readings and keys: see kill_points_stages_test.py."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import types

import pytest
from kill_points import everywhere, said, say
from kill_points_stages_test import EVERY, contents, copied
from studies import make_study, write_traces

from adx import assessing, files, keys, readings
from adx.outcomes import Quality

BY_PROMPT = (
    'tokens', 'reasoning_tokens', 'finished', 'repetition', 'statements', 'true_statements', 'nats', 'scored_tokens',
)  # fmt: skip


def quality(traces, *given) -> Quality:
    yes = (True,) * len(traces)
    each = dict.fromkeys(BY_PROMPT, (1.0,) * len(traces))
    return Quality(
        '', traces[0].seed, 'p', yes, yes, yes, {}, 9.0, 9.0, 1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0, by_prompt=each
    )


@pytest.fixture(scope='module')
def made(tmp_path_factory, students):
    """A study whose traces are there."""
    study = make_study(students, seeds=(0,))
    study = dataclasses.replace(study, judge=study.students[1])
    path = tmp_path_factory.mktemp('made') / 'whole'
    write_traces(study, str(path))
    return study, path


@pytest.fixture
def measured(made, monkeypatch):
    """Where nothing is decoded."""
    study, _ = made
    timed = lambda *given: dict.fromkeys(study.arms, 0.5)  # noqa: E731
    for target, name, value in (
        (assessing.timing, 'seconds_per_token', timed),
        (assessing.pipeline, 'load_models', lambda *given: types.SimpleNamespace(tokenizer=None)),
        (assessing.loading, 'blueprint', lambda *given: None), (assessing, '_measures', lambda study: None),
        (assessing.generation, 'make_requests', lambda *given: None), (assessing.forcing, 'force', lambda *given: {}),
        (assessing.forcing, 'grade', lambda *given: {}), (assessing, 'measure', quality),
    ):  # fmt: skip
        monkeypatch.setattr(target, name, value)


@pytest.mark.slow  # half a minute
def test_measurements(tmp_path, made, measured):
    study, whole = made

    def between(place):
        assert all(len(one.correct) == 24 for one in assessing.qualities(study, str(place / 'run')))

    def check(place):
        found = assessing.qualities(study, str(place / 'run'))
        assert [(one.arm, one.seconds) for one in found] == [(arm, 0.5 * 9 * 24) for arm in study.arms]

    run = lambda place: assessing.assess(study, str(place / 'run'))  # noqa: E731
    assert everywhere(tmp_path, run, check, EVERY, copied(whole), between) > 20


def test_a_report(tmp_path, made, measured, monkeypatch):
    study, whole = made
    path = tmp_path / 'measured'
    shutil.copytree(whole, path)
    assessing.assess(study, str(path))
    findings, rows = assessing.find(study, str(path)), assessing.report(study, str(path))
    expected = contents(path / 'private' / 'report')
    assert set(expected) == {'audit.json', 'report.html', 'report.json'}
    shutil.rmtree(path / 'private' / 'report')
    monkeypatch.setattr(assessing, 'find', lambda *given: findings)  # what is dear and writes nothing
    monkeypatch.setattr(assessing, 'frontier', lambda *given: rows[:-1])

    def between(place):
        found = contents(place / 'run' / 'private' / 'report')
        assert all(data == expected[name] for name, data in found.items() if not name.endswith(files.TEMPORARY))

    def check(place):
        between(place)
        assert set(expected) <= set(contents(place / 'run' / 'private' / 'report'))

    run = lambda place: assessing.report(study, str(place / 'run'))  # noqa: E731
    assert everywhere(tmp_path, run, check, EVERY, copied(path), between) > 8


def test_readings_and_keys(tmp_path):
    """One that was noted and did not happen counts, one that happened is never left out."""

    def run(place):
        readings.freeze(place, 'hash')
        readings.read_test(place, 'hash', 'plain')
        say(place, ['read'])
        with contextlib.suppress(keys.ConfigError):
            keys.new(place / 'signer.key')

    def check(place):
        assert 1 <= len(readings.readings(place)) <= 2
        assert len(keys.read(place / 'signer.key')) == 32

    def between(place):
        assert not said(place) or readings.readings(place)

    assert everywhere(tmp_path, run, check, EVERY, between=between) > 10
