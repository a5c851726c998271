"""A run from end to end in one process: it opens no connection, and a change of its environment needs leave."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import socket

import pytest

from adx import environments, export, pipeline, view
from adx.errors import Interrupted, WorkdirError
from adx.experiment import Arm, MeshShape
from adx.storage import Workdir, hashes
from launch.config import load_config
from launch.progress import Progress
from tests import tiny
from tools import show_traces


@pytest.fixture(scope='module')
def experiment(tmp_path_factory):
    root = tmp_path_factory.mktemp('offline')
    made = load_config(tiny.write_config(root / 'config.py', tiny.write_teacher(root / 'teacher')))
    decode = dataclasses.replace(made.decode, slots=4)
    return dataclasses.replace(made, arms=(Arm('plain'),), proxies=(), max_new_tokens=6, decode=decode)


@pytest.fixture
def blocked(monkeypatch):
    """Every attempt to reach anything, by name."""
    tried = []

    def refuse(*arguments, **_):
        tried.append(arguments)
        raise OSError('the network is blocked')

    for name in ('connect', 'connect_ex', 'sendto', 'bind'):
        monkeypatch.setattr(socket.socket, name, refuse)
    for name in ('getaddrinfo', 'create_connection'):
        monkeypatch.setattr(socket, name, refuse)
    return tried


def generate(experiment, path, place=pipeline.Place(), progress=lambda report, trace: None):  # noqa: B008
    return pipeline.generate(experiment, str(path), place, progress, contextlib.nullcontext)


def test_the_block_blocks(blocked):
    with pytest.raises(OSError, match='blocked'), socket.socket() as out:
        out.connect(('127.0.0.1', 1))
    assert blocked


def test_generation_pages_and_release_open_no_connection(experiment, tmp_path, blocked):
    assert generate(experiment, tmp_path).done == 3
    page = view.html(show_traces.load_groups(Workdir(tmp_path), 0), 'Traces')
    assert 'default-src' in page
    for out_format in ('chat', 'parquet'):
        export.export(tmp_path, out_format, 'plain', 'cc0')
    assert blocked == []


def test_another_mesh_goes_on_only_with_leave_and_to_the_same_traces(experiment, tmp_path, capsys):
    def stop(report, trace):
        if report.done == 1:
            raise Interrupted('stopped')

    generate(experiment, tmp_path / 'whole')
    path = tmp_path / 'run'
    with pytest.raises(Interrupted):
        generate(experiment, path, progress=stop)
    assert 0 < len(hashes(path)) < 3
    wider = dataclasses.replace(experiment, mesh=MeshShape(data=2))
    with pytest.raises(WorkdirError, match=r'mesh: 1x1x1 -> 2x1x1.*--allow_environment_change'):
        generate(wider, path)
    report = generate(wider, path, pipeline.Place(may_change=True), Progress(terminal=False))
    assert 'mesh: 1x1x1 -> 2x1x1' in report.changes[0]
    assert json.loads(capsys.readouterr().err.splitlines()[0])['environment_changes'] == report.changes
    assert hashes(path) == hashes(tmp_path / 'whole')
    complete = dataclasses.replace(experiment, mesh=MeshShape(model=2))
    assert generate(complete, path).done == 0  # a complete run may be looked at anywhere
    assert len(environments.changes(Workdir(path))) == 1
