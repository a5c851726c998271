"""Whose a rewrite is: what belongs to it, and what is refused under its name."""
# ruff: noqa: F811, fixtures come by their names

from __future__ import annotations

import dataclasses
import json
import shutil

import pytest
from rewriting_test import ROWS, base, shop, workdir  # noqa: F401

from adx import instructions, keys, rewrites_io, rewriting
from adx.drafting import Rewrite
from adx.errors import InputError, StorageError
from adx.experiment import experiment_hash, identity
from adx.rewriters.evolved import Evolved
from adx.rewriters.instructed import Instructed
from adx.rewriters.marked import Marked
from adx.rewriters.selected import Selected
from adx.storage import Workdir


def test_records_of_before_do_not_say_what_share_of_the_words_changed(base, workdir):
    rewriting.rewrite(base, str(workdir.path))
    for file in (workdir.private / 'rewrites' / 'said').glob('*.jsonl'):
        records = [json.loads(line) for line in file.read_text().splitlines()]
        for record in records:
            del record['changed']
        file.write_text(''.join(f'{json.dumps(record)}\n' for record in records))
    found = rewrites_io.tally(workdir, 'said')
    assert (found['rewritten'], found['changed']) == (ROWS, None)
    (file,) = (workdir.private / 'rewrites' / 'said').glob('*.jsonl')
    file.write_text(file.read_text().replace('"note"', '"changed": "much", "note"', 1))
    with pytest.raises(StorageError, match=r"is no rewrite \(see \['changed'\]\)"):
        rewrites_io.tally(workdir, 'said')


def test_another_rewrite_of_the_same_name_is_refused(base, workdir):
    rewriting.rewrite(base, str(workdir.path))
    other = dataclasses.replace(base, rewrites=(Rewrite('said', 'plain', Instructed('condense')),))
    with pytest.raises(InputError, match=r'another rewrite .*condense'):
        rewriting.rewrite(other, str(workdir.path))


def test_what_it_is_made_of_belongs_to_it(base, workdir):
    """Else text of another rewrite of that name would be gone on with."""
    chain = (base.rewrites[0], Rewrite('again', 'said', Instructed()))
    rewriting.rewrite(dataclasses.replace(base, rewrites=chain), str(workdir.path))
    shutil.rmtree(workdir.private / 'rewrites' / 'said')
    changed = (Rewrite('said', 'plain', Instructed('condense')), chain[1])
    with pytest.raises(InputError, match=r'again holds another rewrite .*before\.rewrite\.rewriter.*condense'):
        rewriting.rewrite(dataclasses.replace(base, rewrites=changed), str(workdir.path))


def test_marks_belong_to_their_key_which_is_not_shown(base, tmp_path, monkeypatch):
    monkeypatch.setenv(keys.DIRECTORY, str(tmp_path))
    keys.new(tmp_path / 'master.key')
    one = Rewrite('marked', 'plain', Selected(Marked('acme')), share=0.1)
    found = []
    for _ in range(2):
        keys.place(tmp_path, 'acme', 1).unlink(missing_ok=True)
        (tmp_path / 'master.key').unlink()
        keys.new(tmp_path / 'master.key')
        keys.derive(tmp_path / 'master.key', tmp_path, 'acme', 1)
        found.append(rewrites_io.identity(base, one))
        assert keys.served('acme', 1).hex() not in json.dumps(found)
    assert found[0]['key'] != found[1]['key']
    assert set(rewrites_io.identity(base, base.rewrites[0])) == {'format_version', 'rewriter', 'rewrite'}


def test_originals_must_be_complete(base, workdir):
    with Workdir.open(workdir.path, identity(base), experiment_hash(base)) as writer:
        writer.heartbeat({'totals': {'plain': ROWS + 1}})
    with pytest.raises(InputError, match='6 of 7 traces'):
        rewriting.rewrite(base, str(workdir.path))
    (workdir.private / 'selections' / 'first.jsonl').unlink()
    one = dataclasses.replace(base, rewrites=base.rewrites[1:])
    with pytest.raises(InputError, match='run --stages=select first'):
        rewriting.rewrite(one, str(workdir.path))


def test_a_stopped_rewrite_goes_on_with_the_weights_that_began_it(base, workdir, monkeypatch):
    one = dataclasses.replace(base, rewrites=base.rewrites[:1])
    monkeypatch.setattr(rewriting, 'BATCH', 2)
    monkeypatch.setattr(rewriting, 'next_batch', lambda count, seconds: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        rewriting.rewrite(one, str(workdir.path))
    monkeypatch.setattr(rewriting, 'next_batch', lambda count, seconds: ROWS)
    with monkeypatch.context() as patch:
        patch.setattr(rewrites_io.loading, 'identify', lambda source: 'others')
        with pytest.raises(InputError, match=r'begun with other weights .*teacher'):
            rewriting.rewrite(one, str(workdir.path))
    assert rewriting.rewrite(one, str(workdir.path))['said']['rewritten'] == ROWS
    monkeypatch.setattr(rewrites_io.loading, 'identify', None)  # what is complete may be looked at without a model
    assert rewriting.rewrite(one, str(workdir.path))['said']['rewritten'] == ROWS


def test_who_is_made_of_a_told_rewrite_belongs_to_what_it_was_told(base, workdir):
    found, after = Rewrite('found', 'plain', Evolved()), Rewrite('after', 'found', Instructed())
    run = dataclasses.replace(base, rewrites=(found, after))
    (workdir.private / 'evolved').mkdir()
    state = instructions.State(workdir, {'of': 'plain'})
    state.add('Say it so.', 0, 0.5, {})
    rewriting.rewrite(run, str(workdir.path))
    shutil.rmtree(workdir.private / 'rewrites' / 'found')
    state.add('Say it slowly.', 1, 0.75, {})
    with pytest.raises(InputError, match=r'another rewrite .*told'):
        rewriting.rewrite(run, str(workdir.path))
