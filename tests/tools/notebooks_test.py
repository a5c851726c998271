"""Every notebook runs as a reader runs it, on a random model, and is stored without outputs."""

from __future__ import annotations

import pathlib

import nbclient
import nbformat
import pytest
from IPython.core.interactiveshell import InteractiveShell

ROOT = pathlib.Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / 'tools' / 'notebooks').glob('*.ipynb'))
# Sends the kernel what the stop button sends, as soon as there is a trace.
STOP_BUTTON = """
import os, signal, threading, time
def stop():
    while not run.traces:
        time.sleep(0.001)
    os.kill(os.getpid(), signal.SIGINT)
threading.Thread(target=stop).start()
"""


def read(path: pathlib.Path) -> nbformat.NotebookNode:
    notebook = nbformat.read(path, as_version=4)
    # The environment of the test is installed already, and its model is in the cache.
    notebook.cells = [cell for cell in notebook.cells if not {'install', 'fetch'} & {*cell.metadata.get('tags', ())}]
    return notebook


def shown(cell: nbformat.NotebookNode) -> str:
    """The HTML of a cell's result."""
    (result,) = [output for output in cell.outputs if output.output_type == 'execute_result']
    return result.data['text/html']


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.stem)
def test_is_stored_without_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert all(not cell.outputs and cell.execution_count is None for cell in notebook.cells if 'outputs' in cell)


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.stem)
def test_one_line_installs_adx_and_leaves_a_jax_that_is_there_alone(path, tmp_path, monkeypatch):
    """Run as IPython does, with a pip that lists three packages and says what it was told to install."""
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if 'install' in cell.metadata.get('tags', ())]
    (line,) = [line for cell in cells for line in cell.source.splitlines()]
    pip, told = tmp_path / 'pip', tmp_path / 'told'
    pip.write_text('#!/bin/sh\necho flax==0.1; echo jax==0.99.9; echo jax-cuda12-plugin==0.99.9\n')
    pip.chmod(0o700)
    (tmp_path / 'python').mkdir()
    (tmp_path / 'python' / 'pip.py').write_text(f'import sys\nprint(*sys.argv[1:], file=open({str(told)!r}, "w"))\n')
    monkeypatch.setenv('PATH', str(tmp_path), prepend=':')
    monkeypatch.setenv('PYTHONPATH', str(tmp_path / 'python'))
    InteractiveShell().run_cell(line).raise_error()
    assert told.read_text() == 'install -q ../.. jax==0.99.9 jax-cuda12-plugin==0.99.9\n'
    assert (path.parent / '../../pyproject.toml').exists()


def test_quickstart_shows_traces_and_goes_on_after_an_interruption(smollm2, monkeypatch):
    for name, value in smollm2.items():
        monkeypatch.setenv(name, value)
    notebook = read(ROOT / 'tools' / 'notebooks' / 'quickstart.ipynb')
    place = next(i for i, cell in enumerate(notebook.cells) if cell.source == 'run()')
    decode = notebook.cells[place]
    again = decode.copy() | {'id': 'again', 'outputs': []}
    stop = nbformat.v4.new_code_cell(STOP_BUTTON)
    notebook.cells[place : place + 1] = [stop, decode, nbformat.NotebookNode(again)]
    client = nbclient.NotebookClient(notebook, timeout=300, resources={'metadata': {'path': str(ROOT)}})
    client.execute()
    first, second = (shown(cell) for cell in notebook.cells[place + 1 : place + 3])
    assert 'of 8 traces; call it again to continue' in str(decode.outputs)
    assert 0 < first.count('<article>') < 8  # four prompts, two arms
    assert second.count('<article>') == 8


@pytest.mark.slow  # a minute
def test_derivative_checks_itself_and_shows_traces(smollm2, monkeypatch):
    for name, value in smollm2.items():
        monkeypatch.setenv(name, value)
    notebook = read(ROOT / 'tools' / 'notebooks' / 'derivative.ipynb')
    nbclient.NotebookClient(notebook, timeout=300, resources={'metadata': {'path': str(ROOT)}}).execute()
    assert shown(notebook.cells[-2]).count('<article>') == 12  # four prompts, three arms
