"""The program reads a real workdir and a real tokenizer directory, and its page stays private."""

from __future__ import annotations

import json
import stat

import pytest
import tokenizers
from absl.testing import flagsaver

from adx.datasets.gsm8k import Gsm8k
from adx.datasets.tokenizing import Tokenizer, load_tokenizer, save_tokenizer
from adx.errors import InputError, StorageError, WorkdirError
from adx.experiment import Experiment, ModelSource, experiment_hash, identity
from adx.storage import Workdir
from adx.types import Trace
from tools import show_traces


@pytest.fixture(scope='module', autouse=True)
def _parsed_flags():
    show_traces.flags.FLAGS.mark_as_parsed()  # other programs' required flags may be defined in this process too


@pytest.fixture
def tokenizer(tmp_path) -> str:
    """Byte-level without merges, so that every character beyond ASCII is several tokens; <end> is its eos."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    backend = tokenizers.Tokenizer(tokenizers.models.BPE({char: i for i, char in enumerate(alphabet)}, []))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    backend.add_special_tokens(['<end>'])
    directory = str(tmp_path / 'teacher')
    end = backend.token_to_id('<end>')
    save_tokenizer(Tokenizer(backend, frozenset({end}), None, {'eos_token': '<end>'}, None, ''), directory)
    return directory


def make_trace(tokenizer: str, request_id: str, text: str, intervened: int | None) -> Trace:
    """`intervened`: the byte of the text at which the defence acted."""
    ids = tuple(load_tokenizer(tokenizer).encode(f'{text}<end>'))
    defence = {'type': 'undefended'} if intervened is None else {'type': 'product_of_experts', 'gamma': 0.5}
    return Trace(
        request_id=request_id, messages=({'role': 'user', 'content': 'How many?'},), text=text, reasoning='',
        answer=text, tokens=ids, stop='eos', prompt_tokens=3, defence=defence, sampling={}, seed=0, gold='7',
        statistics={'intervened': [int(i == intervened) for i in range(len(ids))], 'kl': [0.5] * len(ids)},
    )  # fmt: skip


def write(path, traces: list[Trace], teacher: str) -> str:
    run = Experiment(dataset=Gsm8k(), teacher=ModelSource(teacher))
    with Workdir.open(path, identity(run), experiment_hash(run)) as workdir:
        workdir.append(traces)
    return str(path)


@pytest.fixture
def workdir(tmp_path, tokenizer) -> str:
    traces = [
        make_trace(tokenizer, 'gsm8k/test/0/0/poe.gamma=0.5', 'é #### 8', 1),
        make_trace(tokenizer, 'gsm8k/test/0/0/plain', '#### 7', None),
        make_trace(tokenizer, 'gsm8k/test/1/0/plain', 'second', None),
    ]
    return write(tmp_path / 'run', traces, tokenizer)


def test_a_selection_is_a_setting_beside_candidate_0(tmp_path, tokenizer):
    traces = [make_trace(tokenizer, f'gsm8k/test/0/{sample}/plain', f'#### {sample}', None) for sample in range(3)]
    path = write(tmp_path / 'run', traces, tokenizer)
    (tmp_path / 'run' / 'private' / 'selections').mkdir()
    choice = {'request_id': 'gsm8k/test/0/2/plain'}
    (tmp_path / 'run' / 'private' / 'selections' / 'hard.jsonl').write_text(json.dumps(choice) + '\n')
    first, *others = show_traces.load_groups(Workdir(path), 0)
    assert {name: column.answer for name, column in first.columns.items()} == {'plain': '0', 'hard': '2'}
    assert [list(group.columns) for group in others] == [['plain'], ['plain']]
    assert len(show_traces.load_groups(Workdir(path), 1)[0].columns) == 2


def test_shows_the_first_prompts_with_undefended_traces_on_the_left(workdir, capsys):
    with flagsaver.flagsaver(workdir=workdir, limit=1, width=80):
        show_traces.main()
    shown = capsys.readouterr().out
    assert [cell.strip() for cell in shown.split('\n')[4].split('│')] == ['plain', 'poe.gamma=0.5']
    assert '#### 7<end>' in shown
    assert '⟦é⟧ #### 8<end>' in shown
    assert 'answer: 8, wrong' in shown
    assert 'second' not in shown
    assert '\x1b' not in shown  # the output is no terminal


def test_writes_a_page_that_only_its_owner_can_read(workdir, tmp_path):
    page = tmp_path / 'page.html'
    with flagsaver.flagsaver(workdir=workdir, limit=0, html=str(page)):
        show_traces.main()
    assert stat.S_IMODE(page.stat().st_mode) == 0o600
    assert 'PRIVATE' in page.read_text()


@pytest.mark.parametrize(('limits', 'in_terminal', 'in_page'), [((1, 100), 1, 2), ((1, 0), 1, 2), ((0, 1), 2, 1)])
def test_terminal_and_page_have_limits_of_their_own(workdir, tmp_path, capsys, limits, in_terminal, in_page):
    page = tmp_path / 'page.html'
    with flagsaver.flagsaver(workdir=workdir, limit=limits[0], html_limit=limits[1], html=str(page), width=80):
        show_traces.main()
    out, err = capsys.readouterr()
    assert out.count('second') == in_terminal - 1  # the text of the second prompt's one trace
    assert page.read_text().count('<article>') == 2 * in_page  # two settings
    assert f'with {in_page} prompt' in err


@pytest.mark.parametrize(
    ('count', 'error', 'message'), [(1, InputError, "'/nowhere'"), (0, WorkdirError, 'no finished trace')]
)
def test_says_what_is_missing(tmp_path, tokenizer, count, error, message):
    traces = [make_trace(tokenizer, 'gsm8k/test/0/0/plain', 'x', None)][:count]
    workdir = write(tmp_path / 'run', traces, '/nowhere')
    with flagsaver.flagsaver(workdir=workdir), pytest.raises(error, match=message):
        show_traces.main()


def test_says_which_page_cannot_be_written(workdir):
    html = '/proc/none/page.html'
    with flagsaver.flagsaver(workdir=workdir, html=html), pytest.raises(StorageError, match=html):
        show_traces.main()
