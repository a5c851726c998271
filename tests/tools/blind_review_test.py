"""The page tells nothing of which answer is which, and the score of a sheet is counted by the key."""

from __future__ import annotations

import json
import re
import stat

import pytest
from absl.testing import flagsaver
from scipy import stats

from adx.datasets.gsm8k import Gsm8k
from adx.errors import ConfigError, InputError, StorageError
from adx.experiment import Experiment, ModelSource, experiment_hash, identity
from adx.storage import Workdir
from adx.types import Trace
from tools import blind_review

COUNT = 60


@pytest.fixture(scope='module', autouse=True)
def _parsed_flags():
    blind_review.flags.FLAGS.mark_as_parsed()


def make_trace(row: int, arm: str) -> Trace:
    text = f'{arm[0]}{row} </div><script>alert(1)</script> {{{{ 7 * 7 }}}} \u202e #### 7'
    return Trace(
        request_id=f'gsm8k/test/{row}/0/{arm}', messages=({'role': 'user', 'content': f'How many, {row} & <b>?'},),
        text=text, reasoning='', answer=text, tokens=(1, 2), stop='eos', prompt_tokens=3, defence={'type': arm},
        sampling={}, seed=0, gold='7',
    )  # fmt: skip


@pytest.fixture(scope='module')
def workdir(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp('run') / 'run'
    run = Experiment(dataset=Gsm8k(), teacher=ModelSource('none'))
    with Workdir.open(path, identity(run), experiment_hash(run)) as opened:
        opened.append([make_trace(row, arm) for row in range(COUNT) for arm in ('clear', 'poe')])
        opened.append([make_trace(COUNT, 'clear')])
    return str(path)


@pytest.fixture
def made(workdir, tmp_path):
    """The page and the key of 50 pairs."""
    paths = {'page': str(tmp_path / 'review.html'), 'key': str(tmp_path / 'key.json')}
    with flagsaver.flagsaver(workdir=workdir, clean='clear', defended='poe', **paths):
        blind_review.main()
    return (tmp_path / 'review.html').read_text(), json.loads((tmp_path / 'key.json').read_text()), paths


def sheet(key, prefer, odd=lambda number, row: []):
    """What a reader returns who sees the key: prefer and odd are functions of number and row."""
    rows = [{'pair': i, 'prefer': prefer(i, row), 'odd': odd(i, row)} for i, row in enumerate(key['rows'])]
    return {'sheet': key['sheet'], 'rows': rows}


def test_sides_cannot_be_known_from_the_command(workdir, tmp_path):
    keys = []
    for i, seed in enumerate((None, None, 3, 3)):
        paths = {'page': str(tmp_path / f'{i}.html'), 'key': str(tmp_path / f'{i}.json')}
        with flagsaver.flagsaver(workdir=workdir, clean='clear', defended='poe', seed=seed, **paths):
            blind_review.main()
        keys.append(json.loads((tmp_path / f'{i}.json').read_text())['rows'])
    assert keys[0] != keys[1]
    assert keys[2] == keys[3]


class TestPage:
    def test_shows_both_answers_of_50_prompts_where_the_key_says(self, made):
        page, key, _ = made
        shown = re.findall(r'<article><h3>([AB])</h3><div class="text" dir="auto">([cp])(\d+) ', page)
        assert len(shown) == 100
        assert [side for side, _, _ in shown] == ['A', 'B'] * 50
        defended = [side for side, arm, _ in shown if arm == 'p']
        assert defended == [row['defended'] for row in key['rows']]
        assert defended.count('A') == 25  # who always says A prefers nothing
        assert len({row for _, _, row in shown}) == 50
        assert all(shown[i][2] == shown[i + 1][2] for i in range(0, 100, 2))

    def test_is_inert_and_tells_nothing(self, made):
        page, key, paths = made
        assert page.count('<script') == 1
        assert '&lt;script&gt;alert(1)&lt;/script&gt; {{ 7 * 7 }} &lt;U+202E&gt;' in page
        nonce = re.search(r'<script nonce="([^"]+)">', page).group(1)
        assert f"script-src 'nonce-{nonce}'" in page
        assert not re.search(r'poe|clear|gsm8k|https?://|src="', page)
        assert key['sheet'] in page
        assert stat.S_IMODE((blind_review.epath.Path(paths['key'])).stat().mode) == 0o600
        assert page.count('type="radio"') == 150
        assert page.count('type="checkbox"') == 100
        assert len(set(re.findall(r'name="(prefer-\d+)"', page))) == 50

    def test_another_seed_is_another_page_and_the_same_one_is_not(self, workdir):
        def sheet_of(place, seed):
            chosen = blind_review.choose(place, ('clear', 'poe'), 50, seed)
            return blind_review.shuffle(chosen, seed)[1]['sheet']

        class Turned(Workdir):
            def traces(self):
                return reversed([*super().traces()])

        first, other = (sheet_of(Workdir(workdir), seed) for seed in (0, 1))
        assert sheet_of(Turned(workdir), 0) == first != other

    def test_a_rewrite_or_a_selection_is_compared_as_an_arm_is(self, workdir, monkeypatch):
        chosen = [{'request_id': f'gsm8k/test/{row}/0/poe', 'how': 'max_harm'} for row in range(COUNT - 1)]
        monkeypatch.setattr(Workdir, 'selections', lambda self: ['hardest'])
        monkeypatch.setattr(Workdir, 'selection', lambda self, name: chosen)
        pairs = blind_review.choose(Workdir(workdir), ('clear', 'hardest'), 50, 0)
        assert {defended.text[0] for _, defended in pairs} == {'p'}
        assert all(defended.request_id.endswith('/hardest') for _, defended in pairs)
        with pytest.raises(InputError, match="59 prompts have traces of both and --pairs is 60"):
            blind_review.choose(Workdir(workdir), ('clear', 'hardest'), 60, 0)
        monkeypatch.setattr(blind_review.rewrites_io, 'names', lambda source: ['told'])
        told = [make_trace(row, 'told') for row in range(COUNT)]
        monkeypatch.setattr(blind_review.rewrites_io, 'rewritten', lambda source, name: iter(told))
        assert {one.text[0] for _, one in blind_review.choose(Workdir(workdir), ('clear', 'told'), 50, 0)} == {'t'}
        with pytest.raises(InputError, match=r"trace of 'sold'; it has \['clear', 'hardest', 'poe', 'told'\]"):
            blind_review.choose(Workdir(workdir), ('clear', 'sold'), 50, 0)


class TestScore:
    def test_counts_by_the_key(self, made, tmp_path, capsys):
        _, key, paths = made

        def prefer(number, row):
            other = 'AB'[row['defended'] == 'A']
            return row['defended'] if number < 12 else other if number < 40 else 'same' if number < 47 else None

        def odd(number, row):
            other = 'AB'[row['defended'] == 'A']
            return ([row['defended']] if number < 9 else []) + ([other] if number in (0, 20, 21) else [])

        path = tmp_path / 'sheet.json'
        path.write_text(json.dumps(sheet(key, prefer, odd)))
        with flagsaver.flagsaver(score=str(path), key=paths['key']):
            blind_review.main()
        printed = capsys.readouterr().out
        low, high = stats.beta.ppf(0.025, 12, 29), stats.beta.ppf(0.975, 13, 28)  # Clopper and Pearson
        assert 'pairs: 50; no difference: 7; not answered: 3' in printed
        assert f'defended preferred: 12 of 40 = 0.300 (95 % exact: {low:.3f} to {high:.3f};' in printed
        assert [line.split()[-2:] for line in printed.split('\n')[3:5]] == [['1', '8'], ['2', '39']]
        assert 'it is the defended one in 8 of 10' in printed

    def test_a_reader_without_preference(self, made):
        key = made[1]
        printed = blind_review.score(sheet(key, lambda number, row: 'same'), key)
        assert 'nobody had a preference' in printed

    @pytest.mark.parametrize(
        ('change', 'message'),
        [
            ({'sheet': 'x'}, 'another page'),
            ({'rows': []}, 'another page'),
            ({'rows': [{'pair': 0, 'prefer': 'C', 'odd': []}] * 50}, 'row 0 of the sheet'),
            ({'rows': [{'pair': 0, 'prefer': 'A', 'odd': 'A'}] * 50}, 'row 0 of the sheet'),
            ({'rows': [3] * 50}, 'row 0 of the sheet is 3'),
        ],
    )
    def test_a_sheet_that_the_page_did_not_make_is_refused(self, made, change, message):
        key = made[1]
        with pytest.raises(InputError, match=message):
            blind_review.score(sheet(key, lambda number, row: 'A') | change, key)

    @pytest.mark.parametrize('text', ['', '[]', '{"rows": 3}', '\x00'])
    def test_a_file_that_is_no_sheet_is_named(self, made, tmp_path, text):
        path = tmp_path / 'other.json'
        path.write_text(text)
        with flagsaver.flagsaver(score=str(path), key=made[2]['key']), pytest.raises(InputError, match='--score'):
            blind_review.main()


@pytest.mark.parametrize(
    ('given', 'error', 'message'),
    [
        ({'key': ''}, ConfigError, '--key is missing'),
        ({'defended': ''}, ConfigError, 'give --workdir and --defended'),
        ({'defended': 'clear'}, ConfigError, "are both 'clear'"),
        ({'defended': 'ads'}, InputError, r"no finished trace of 'ads'; it has \['clear', 'poe'\]"),
        ({'pairs': 61}, InputError, '60 prompts have traces of both and --pairs is 61'),
        ({'key': '/proc/none/key'}, StorageError, '/proc/none/key was not written'),
    ],
)
def test_errors_name_what_is_wrong(workdir, tmp_path, given, error, message):
    flags = {'workdir': workdir, 'clean': 'clear', 'defended': 'poe', 'key': str(tmp_path / 'k')}
    flags |= {'page': str(tmp_path / 'p')} | given
    with flagsaver.flagsaver(**flags), pytest.raises(error, match=message):
        blind_review.main()
