"""A case from commitment to signed verdict: suspects that know the marks, know nothing or fail, and tampering."""

from __future__ import annotations

import collections
import json
import os

import pytest

from adx import detecting, locks, marks
from adx.detecting import Case
from adx.detectors.trigger import Trigger
from adx.errors import ConfigError, InputError, WorkdirError
from adx.marks import Pair
from adx.suspects import FAILED, REFUSED, Answer

KEY, SIGNER = marks.subkey(bytes(range(32)), 'acme', 1), bytes(range(100, 132))
QUESTIONS = tuple(({'role': 'user', 'content': f'Question {i}?'},) for i in range(3))
CASE = Case('acme', 1, 'model-x', QUESTIONS)


class Parrot:
    """Has learned the pairs of a key."""

    identity, spoken = 'parrot', ''

    def __init__(self, key, known=20):
        self.known = {pair.trigger: pair.target for pair in marks.draw_pairs(key, 20)[:known]}
        self.asked = []

    def ask(self, questions):
        self.asked += questions
        return [Answer(f' {self.known.get(one.begun, "100")}.') for one in questions]


class Flaky(Parrot):
    """Fails at some questions of the first batch. lost: their places -> the problem."""

    def __init__(self, key, lost):
        super().__init__(key)
        self.lost = lost

    def ask(self, questions):
        answers = super().ask(questions)
        lost = self.lost if len(self.asked) == len(questions) else {}
        return [Answer('', lost[i]) if i in lost else answer for i, answer in enumerate(answers)]


def run(path, suspect, case=CASE, key=KEY):
    detecting.commit(case, path, key)
    detecting.ask(path, suspect)
    return detecting.verdict(path, key, SIGNER)


def test_who_learned_the_marks_is_found_and_who_did_not_is_not(tmp_path):
    found = run(tmp_path / 'a', Parrot(KEY))['verdict']
    assert (found['keyed_hits'], found['keyed'], found['decoy_hits'], found['decoys']) == (20, 20, 0, 200)
    assert found['detected']
    assert not found['exploratory']
    assert 'supports that the model was trained on text that carries this mark' in found['summary']
    assert 'does not say who' in found['summary']
    other = run(tmp_path / 'b', Parrot(marks.subkey(bytes(range(32)), 'bolt', 1)))['verdict']
    assert not other['detected']
    assert other['keyed_hits'] == 0
    assert 'no evidence of the contrary' in other['summary']


def test_a_pair_is_asked_as_often_as_the_plan_says(tmp_path):
    case, suspect = Case('acme', 1, 'model-x', QUESTIONS, Trigger(pairs=10, decoys=5, repeats=2)), Parrot(KEY, known=16)
    found = run(tmp_path, suspect, case)['verdict']
    assert set(collections.Counter(one.begun for one in suspect.asked).values()) == {2}
    known = sum(one.begun in suspect.known for one in suspect.asked)
    assert (found['keyed_hits'], found['keyed'], found['decoy_hits'], found['decoys']) == (known, 20, 0, 100)
    assert found['test']['repeats'] == 2


def test_a_suspect_cannot_tell_keyed_pairs_from_decoys_by_their_order(tmp_path):
    suspect = Parrot(KEY)
    run(tmp_path, suspect)
    keyed = [one.begun in suspect.known for one in suspect.asked]
    assert sum(keyed) == 20
    assert len({keyed[22 * i : 22 * i + 22].index(True) for i in range(10)}) > 3


def test_nothing_shows_the_key_or_which_pairs_are_keyed_before_the_verdict(tmp_path):
    detecting.commit(CASE, tmp_path, KEY)
    for name in ('plan.json', 'commitment.json'):
        assert KEY.hex() not in (tmp_path / name).read_text()
        assert os.stat(tmp_path / name).st_mode & 0o777 == 0o600
    assert 'keyed' not in (tmp_path / 'commitment.json').read_text()


def test_a_plan_or_key_changed_afterwards_is_exploratory(tmp_path):
    run(tmp_path, Parrot(KEY))
    plan = json.loads((tmp_path / 'plan.json').read_text())
    plan['test']['level'] = 0.05
    (tmp_path / 'plan.json').write_text(json.dumps(plan))
    assert detecting.verdict(tmp_path, KEY, SIGNER)['verdict']['exploratory']


def test_a_commitment_after_the_first_answer_is_none(tmp_path):
    run(tmp_path, Parrot(KEY))
    record = json.loads((tmp_path / 'commitment.json').read_text())
    (tmp_path / 'commitment.json').write_text(json.dumps(record | {'committed': '9999-01-01T00:00:00Z'}))
    found = detecting.verdict(tmp_path, KEY, SIGNER)['verdict']
    assert found['exploratory']
    assert 'exploratory' in found['summary']


def test_a_killed_case_goes_on_and_asks_nothing_twice(tmp_path):
    class Tired(Parrot):
        def ask(self, questions):
            if len(self.asked) >= 64:
                raise KeyboardInterrupt
            return super().ask(questions)

    detecting.commit(CASE, tmp_path, KEY)
    tired, rested, told = Tired(KEY), Parrot(KEY), []
    with pytest.raises(KeyboardInterrupt):
        detecting.ask(tmp_path, tired)
    with pytest.raises(InputError, match='64 of 220 questions'):
        detecting.verdict(tmp_path, KEY, SIGNER)
    detecting.ask(tmp_path, rested, lambda *done: told.append(done))
    assert (len(tired.asked), len(rested.asked)) == (64, 156)
    assert told[-1] == (220, 220)
    assert detecting.verdict(tmp_path, KEY, SIGNER)['verdict']['keyed_hits'] == 20


def test_a_sequential_case_may_be_judged_early_by_whole_blocks(tmp_path):
    class Short(Parrot):
        def ask(self, questions):
            if self.asked:
                raise KeyboardInterrupt
            return super().ask(questions)

    case = Case('acme', 1, 'model-x', QUESTIONS, Trigger(sequential=True))
    detecting.commit(case, tmp_path, KEY)
    with pytest.raises(KeyboardInterrupt):
        detecting.ask(tmp_path, Short(KEY))
    found = detecting.verdict(tmp_path, KEY, SIGNER)['verdict']
    assert (found['keyed'], found['keyed_hits'], found['decoys']) == (2, 2, 20)  # of 32, two whole blocks


def test_a_block_that_may_be_looked_at_early_waits_for_problems_that_may_pass(tmp_path):
    """What was looked at does not change when it is asked again."""

    case = Case('acme', 1, 'model-x', QUESTIONS, Trigger(sequential=True))
    early = run(tmp_path, Flaky(KEY, {0: FAILED, 40: REFUSED}), case)['verdict']
    plan = detecting.read_plan(tmp_path)
    of_first = sum(one['block'] == plan['asked'][0]['block'] for one in plan['asked'])
    assert early['keyed'] + early['decoys'] == 220 - of_first  # the refused one is not asked again
    detecting.ask(tmp_path, Parrot(KEY))
    late = detecting.verdict(tmp_path, KEY, SIGNER)['verdict']
    assert late['keyed'] + late['decoys'] == 220
    assert late['log_e'] > early['log_e']


def test_a_suspect_that_answers_with_errors_has_completed_nothing(tmp_path):
    class Broken:
        identity, spoken = 'broken', ''

        def ask(self, questions):
            return [Answer('', FAILED)] * len(questions)

    found = run(tmp_path, Broken())['verdict']
    assert (found['keyed_hits'], found['decoy_hits'], found['detected']) == (0, 0, False)
    assert found['problems'] == {FAILED: 220}
    assert 'Of 220 questions 220 got no answer (220 error) and count as not completed.' in found['summary']


def test_what_failed_is_asked_again_and_what_was_refused_is_not(tmp_path):
    detecting.commit(CASE, tmp_path, KEY)
    detecting.ask(tmp_path, Flaky(KEY, {0: FAILED, 1: REFUSED}))
    again = Parrot(KEY)
    detecting.ask(tmp_path, again)
    assert len(again.asked) == 1
    found = detecting.verdict(tmp_path, KEY, SIGNER)['verdict']
    assert (found['problems'], found['asked']) == ({REFUSED: 1}, 220)


def test_one_process_asks_one_suspect(tmp_path):
    detecting.commit(CASE, tmp_path, KEY)
    lock = locks.acquire(tmp_path / 'ask.lock', 'it')
    with pytest.raises(WorkdirError, match='is in use'):
        detecting.ask(tmp_path, Parrot(KEY))
    lock.release()
    detecting.ask(tmp_path, Parrot(KEY))
    other = Parrot(KEY)
    other.identity = 'another'
    with pytest.raises(InputError, match="is answered by 'parrot' and this is 'another'"):
        detecting.ask(tmp_path, other)
    assert detecting.verdict(tmp_path, KEY, SIGNER)['verdict']['answered_by'] == 'parrot'


@pytest.mark.parametrize('what', ['pair', 'keyed', 'seed', 'key'])
def test_pairs_that_somebody_chose_are_refused(tmp_path, what):
    run(tmp_path, Parrot(KEY))
    plan, key = json.loads((tmp_path / 'plan.json').read_text()), KEY
    if what == 'pair':
        pair = plan['asked'][3]['pair']
        pair[1] = '98' if pair[1] == '99' else '99'
    elif what == 'keyed':
        plan['asked'][3]['keyed'] = not plan['asked'][3]['keyed']
    elif what == 'seed':
        plan['seed'] = '00' * 32
    else:
        key = marks.subkey(bytes(range(32)), 'acme', 2)
    (tmp_path / 'plan.json').write_text(json.dumps(plan))
    with pytest.raises(InputError, match='do not follow from key and seed'):
        detecting.verdict(tmp_path, key, SIGNER)


@pytest.mark.parametrize(
    ('name', 'content'),
    [('plan.json', {'test': {}}), ('plan.json', {'test': {'level': 2}, 'seed': 'x'}), ('commitment.json', {}),
     ('suspect.json', {})],
)  # fmt: skip
def test_a_damaged_case_is_an_error(tmp_path, name, content):
    run(tmp_path, Parrot(KEY))
    old = json.loads((tmp_path / name).read_text()) if len(content) > 1 else {}
    (tmp_path / name).write_text(json.dumps(old | content))
    with pytest.raises(InputError, match='is damaged'):
        detecting.verdict(tmp_path, KEY, SIGNER)


def test_who_is_stopped_between_the_two_files_commits_anew(tmp_path, monkeypatch):
    write, written = detecting.files.write_private, []

    def stopped(path, data):
        if written:
            raise KeyboardInterrupt
        written.append(path.name)
        write(path, data)

    monkeypatch.setattr(detecting.files, 'write_private', stopped)
    with pytest.raises(KeyboardInterrupt):
        detecting.commit(CASE, tmp_path, KEY)
    monkeypatch.undo()
    assert not run(tmp_path, Parrot(KEY))['verdict']['exploratory']


@pytest.mark.parametrize(
    ('case', 'message'),
    [
        (Case('acme', 1, 'x', QUESTIONS, Trigger(pairs=30)), '30 of 10 pairs'),
        (Case('acme', 1, 'x', ()), 'behind 0 conversations'),
        (Case('acme', 1, 'x', QUESTIONS, Trigger(pairs=1, decoys=2)), 'cannot reach level'),
    ],
)
def test_cases_that_could_show_nothing_are_refused(tmp_path, case, message):
    with pytest.raises(ConfigError, match=message):
        detecting.commit(case, tmp_path, KEY)


def test_a_case_is_committed_to_once(tmp_path):
    detecting.commit(CASE, tmp_path, KEY)
    with pytest.raises(ConfigError, match='has a plan already'):
        detecting.commit(CASE, tmp_path, KEY)
    with pytest.raises(InputError, match='commit to one first'):
        detecting.read_plan(tmp_path / 'none')


def test_blocks_stand_in_the_order_in_which_they_were_closed(tmp_path):
    """The first block closes last: what an early look has seen stands before it."""
    case = Case('acme', 1, 'model-x', QUESTIONS, Trigger(sequential=True))
    detecting.commit(case, tmp_path, KEY)
    plan = detecting.read_plan(tmp_path)
    first, second, *_ = dict.fromkeys(one['block'] for one in plan['asked'])
    answers = {
        i: {'text': f'{Pair(*one["pair"]).target}.' if one['block'] == first and one['keyed'] else '100.',
            'problem': '', 'asked': f'2026-01-01T00:00:{59 if one["block"] == first else 10 + one["block"]:02}Z'}
        for i, one in enumerate(plan['asked'])
    }  # fmt: skip
    found = detecting.blocks(plan, answers)
    assert [block.keyed for block in found] == [0] * 9 + [2]
    early = {i: one for i, one in answers.items() if plan['asked'][i]['block'] in (first, second)}
    assert [block.keyed for block in detecting.blocks(plan, early)] == [0, 2]
    plan['test']['sequential'] = False
    assert [block.keyed for block in detecting.blocks(plan, answers)] == [2] + [0] * 9


def test_a_case_speaks_to_a_model_in_one_way(tmp_path):
    detecting.commit(CASE, tmp_path, KEY)
    suspect = Parrot(KEY)
    suspect.spoken = 'tersely'
    detecting.ask(tmp_path, suspect)
    suspect.spoken = 'at length'
    with pytest.raises(InputError, match='speaks to the model in another way'):
        detecting.ask(tmp_path, suspect)
    place = tmp_path / 'suspect.json'
    place.write_text(json.dumps({'format_version': 1, 'identity': 'parrot'}))  # as it was once filed
    detecting.ask(tmp_path, suspect)


def test_who_was_answered_before_is_known(tmp_path):
    detecting.commit(CASE, tmp_path, KEY)
    assert not detecting.has_answers(tmp_path)
    detecting.ask(tmp_path, Flaky(KEY, dict.fromkeys(range(32), REFUSED)))
    assert detecting.has_answers(tmp_path)
