"""Imports point one way: shell -> stages -> menus -> nouns."""

from __future__ import annotations

import ast
import graphlib
import pathlib
import subprocess
import sys

import pytest

ADX = pathlib.Path(__file__).parent.parent / 'adx'
NOUNS = {
    'aggregation', 'answers', 'automata', 'batching', 'drafts', 'equations', 'errors', 'fields', 'gates', 'grading',
    'hashing', 'lessons', 'losses', 'marks', 'mesh', 'numerics', 'outcomes', 'pace', 'retries', 'sandbox', 'spans',
    'statistics', 'struct', 'sweeping', 'texts', 'types',
}  # fmt: skip
MENUS = {'attacks', 'datasets', 'defences', 'detectors', 'models', 'rewriters'}
STAGES = {
    'decoding', 'drafting', 'editing', 'evaluation', 'frames', 'gradients', 'influence', 'lesson_encoding',
    'objectives', 'optimising', 'pages', 'planning', 'quality', 'reporting', 'scaling', 'selection', 'tails',
    'training', 'view',
}  # fmt: skip
SHELL = {
    'ahead', 'assessing', 'attackers', 'attributing', 'bystander', 'checkpoints', 'cohorts', 'courses', 'curves',
    'detecting', 'directions', 'distilling', 'environments', 'evolving', 'experiment', 'export', 'families',
    'files', 'fitting', 'forcing', 'forgetting', 'gcs', 'generation', 'gguf_io', 'instructions', 'journal',
    'keeping', 'keys', 'loading', 'locks', 'needs', 'orbax_io', 'outcomes_io', 'pipeline', 'policy', 'preparation',
    'processes', 'readings', 'retention', 'rewrites_io', 'rewriting', 'safetensors_io', 'selecting', 'session',
    'settings', 'staging', 'storage', 'study', 'study_traces', 'supervision', 'suspects', 'teaching', 'timing',
    'training_io', 'transfer', 'verdicts', 'watch', 'workshop',
}  # fmt: skip
LEVELS = ({'__init__'}, NOUNS, MENUS, STAGES, SHELL)
NOUN_LIBRARIES = {'jax', 'numpy', 'einops', 'scipy'}


def level(unit: str) -> int:
    return next(i for i, units in enumerate(LEVELS) if unit in units)


def unit_of(path: pathlib.Path) -> str:
    return path.relative_to(ADX).with_suffix('').parts[0]


def imports(path: pathlib.Path) -> list[str]:
    """Dotted names of all imports in a file, also those inside functions."""
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names += [f'{node.module}.{alias.name}' for alias in node.names]
    return names


FILES = sorted(path for path in ADX.rglob('*.py') if path != ADX / '__init__.py')


@pytest.mark.parametrize('path', FILES, ids=lambda path: str(path.relative_to(ADX)))
def test_imports_point_down(path):
    unit = unit_of(path)
    for name in imports(path):
        parts = name.split('.')
        assert parts[0] not in ('launch', 'tools', 'configs', 'tests'), name
        if parts[0] == 'adx' and len(parts) > 1 and parts[1] != unit:
            assert level(parts[1]) <= level(unit), f'{unit} imports {name}, which stands above it'
            assert not (unit in MENUS and parts[1] in MENUS), f'the menu {unit} imports the menu {parts[1]}'


def test_imports_make_no_circle():
    """Then any module may be the first that a program imports."""
    modules = {'.'.join(('adx', *path.relative_to(ADX).with_suffix('').parts)): path for path in FILES}
    modules = {name.removesuffix('.__init__'): path for name, path in modules.items()}
    graph = {}
    for name, path in modules.items():
        froms = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.ImportFrom)]
        tops = [f'{node.module}.{alias.name}' for node in froms for alias in node.names]
        graph[name] = {one if one in modules else one.rpartition('.')[0] for one in tops} & set(modules) - {name}
    tuple(graphlib.TopologicalSorter(graph).static_order())


@pytest.mark.parametrize('unit', sorted(NOUNS - {'grading'}))
def test_nouns_use_numbers_only(unit):
    outside = {name.split('.')[0] for name in imports(ADX / f'{unit}.py')} - {'adx', '__future__'}
    assert outside - set(sys.stdlib_module_names) <= NOUN_LIBRARIES


@pytest.mark.parametrize('path', FILES, ids=lambda path: str(path.relative_to(ADX)))
def test_pytrees_know_their_class(path):
    """jax finds programs by structure; see adx/struct.py for the dataclasses whose structure leaves the class out."""
    assert not {'flax.struct', 'jax.tree_util.register_dataclass'} & set(imports(path))


def test_files_stay_small():
    long = {str(p.relative_to(ADX)): n for p in FILES if (n := len(p.read_text().splitlines())) > 350}
    assert not long


def test_every_name_of_adx_is_there_and_another_is_an_error():
    import adx

    assert all(getattr(adx, name) for name in adx.__all__)
    assert dir(adx) == adx.__all__ == sorted(adx.__all__)
    with pytest.raises(AttributeError, match="adx has no 'decoode'"):
        _ = adx.decoode


def test_importing_starts_no_backend_and_loads_what_few_need_later():
    later = {'orbax', 'tensorflow_datasets', 'array_record', 'safetensors', 'gguf', 'pyarrow', 'tqdm', 'scipy'}
    heavy = later | {'jax', 'flax', 'optax', 'tokenizers', 'jinja2'}
    code = (
        'import sys, adx, launch.run, launch.program, adx.errors; '
        f'early = {heavy} & set(sys.modules); assert not early, early; '
        'adx.Experiment, adx.decode, adx.Gsm8k; import jax; assert not jax._src.xla_bridge._backends; '
        f'early = {later | {"jinja2"}} & set(sys.modules); assert not early, early'
    )
    subprocess.run([sys.executable, '-c', code], check=True, cwd=ADX.parent)
