"""From prompts to requests, and where a stop string ends a trace."""

from __future__ import annotations

import dataclasses
import json
import random
import types

import fakes
import pytest
import tokenizers
from tokenizers import decoders, models

from adx.datasets import Gsm8k, Jsonl
from adx.datasets.chat import Prompting
from adx.datasets.tokenizing import Tokenizer
from adx.defences import ProductOfExperts
from adx.errors import ConfigError, InputError
from adx.experiment import Arm, Experiment, ModelSource, sweep
from adx.generation import Models, left_out, make_engines, make_requests, make_stop_fn
from adx.types import Prompt, Sampling
from tests import tiny

CHUNK = 4


def byte_fallback() -> Tokenizer:
    """As Llama 2 spells text: letters, and bytes for all other characters."""
    words = ['</s>', 'a', 'b', '\u2581', *(f'<0x{byte:02X}>' for byte in range(256))]
    backend = tokenizers.Tokenizer(
        models.BPE({word: i for i, word in enumerate(words)}, [], byte_fallback=True, unk_token='</s>')
    )
    steps = [decoders.Replace('\u2581', ' '), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(' ', 1, 0)]
    backend.decoder = decoders.Sequence(steps)
    backend.add_special_tokens(['</s>'])
    return Tokenizer(backend, frozenset({0}), None, {'eos_token': '</s>'}, None, '')


def spell(text: str, tokenizer: Tokenizer, draw: random.Random) -> list[int]:
    """The text letter by letter, with special tokens strewn in, also inside a character."""
    special = [i for i, token in tokenizer.backend.get_added_tokens_decoder().items() if token.special]
    tokens = []
    for letter in text.replace(' ', ' ' if tokenizer.template else '\u2581'):
        for token in tokenizer.encode(letter):
            tokens += draw.choices(special, k=3) if draw.random() < 0.1 else []
            tokens.append(token)
    return tokens


def stops_at(tokens: list[int], stops: list[str], tokenizer: Tokenizer) -> int | None:
    """What `make_stop_fn` says as chunk after chunk is read."""
    stop_fn = make_stop_fn(stops, tokenizer, CHUNK)
    assert stop_fn is not None
    for end in range(CHUNK, len(tokens) + CHUNK, CHUNK):
        kept = stop_fn(tokens[:end])
        if kept is not None:
            return kept
    return None


@pytest.mark.parametrize('tokenizer', [tiny.make_tokenizer(), byte_fallback()], ids=['byte_level', 'byte_fallback'])
def test_a_trace_stops_at_the_first_token_that_completes_a_stop_string(tokenizer):
    draw = random.Random(0)
    stopped = 0
    for _ in range(300):
        stops = [''.join(draw.choices('ab é😀', k=draw.choice([1, 3, 30]))).strip() or 'b' for _ in range(2)]
        text = ''.join(draw.choices('ab é😀', k=draw.randrange(30))) + draw.choice([*stops, '']) + 'é😀 ab'
        tokens = spell(text, tokenizer, draw)
        counts = range(1, len(tokens) + 1)
        first = next((n for n in counts if any(s in tokenizer.decode(tokens[:n]) for s in stops)), None)
        assert stops_at(tokens, stops, tokenizer) == first, (text, stops)
        stopped += first is not None
    assert stopped > 150


def test_a_stop_string_may_be_longer_than_chunks_and_hold_special_tokens():
    tokenizer, stop = tiny.make_tokenizer(), 'the end of it all ' * 5
    start = tokenizer.backend.token_to_id(tiny.START)
    letters = [token for letter in stop for token in tokenizer.encode(letter)]
    tokens = tokenizer.encode('so ') + letters[:7] + [start] * 50 + letters[7:] + tokenizer.encode('more')
    assert stops_at(tokens, [stop], tokenizer) == len(tokenizer.encode('so ')) + 50 + len(letters)
    assert stops_at(tokens[:-20], [stop], tokenizer) is None
    assert make_stop_fn((), tokenizer, CHUNK) is None


def experiment(dataset=None, **fields) -> Experiment:
    fields = {'arms': (Arm('plain'), Arm('again'))} | fields
    return Experiment(dataset=dataset, teacher=ModelSource('none'), **fields)


def prompts(*questions: str) -> list[Prompt]:
    return [Prompt('d', 'train', str(i), ({'role': 'user', 'content': text},)) for i, text in enumerate(questions)]


def test_a_bad_row_is_rejected_and_the_others_are_requested():
    made = make_requests(experiment(samples=2), prompts('How many?', ' ', 'Why? ' * 400), tiny.make_tokenizer())
    assert set(made.requests) == {f'd/train/0/{sample}/{arm}' for sample in (0, 1) for arm in ('plain', 'again')}
    assert len(made.rejected) == 8
    assert 'empty prompt' in made.rejected['d/train/1/0/plain']
    assert 'there is room for 256' in made.rejected['d/train/2/0/plain']


def test_what_no_prompt_can_do_without_is_not_the_fault_of_the_rows():
    base = dataclasses.replace(tiny.make_tokenizer(), template=None)
    with pytest.raises(InputError, match='has no chat template'):
        make_requests(experiment(), prompts('How many?', 'Why?'), base)
    opens = experiment(prompting=Prompting(template_opens_think=True))
    with pytest.raises(ConfigError, match='template_opens_think'):
        make_requests(opens, prompts('How many?'), tiny.make_tokenizer())
    assert not make_requests(experiment(), [], base).prompts


def test_the_arms_of_a_sweep_share_one_engine_and_its_programs():
    tokenizer = types.SimpleNamespace(eos_ids=(5,), control_ids=(5,))
    models = Models(*fakes.make_ensemble(), tokenizer, {})
    base = experiment(arms=(Arm('poe', ProductOfExperts(0.5), Sampling(0.8)),))
    arms = sweep(base, ['arms.poe.defence.gamma=0,0.5,1', 'arms.poe.sampling.temperature=0,0.8']).arms
    [(engine, names)] = make_engines(models, arms, fakes.DECODE, seed=0)
    assert names == {arm.name for arm in arms}

    def requests(arm):
        rows = fakes.make_requests(4, arm.defence, arm.sampling, new=3)
        return [dataclasses.replace(row, id=row.id._replace(setting=arm.name)) for row in rows]

    def decode(arms):
        return {done.id: done.tokens for done in engine.generate([row for arm in arms for row in requests(arm)])}

    alone = decode(arms[:1])
    programs = engine.compiled_programs()
    together = decode(arms)
    for arm in arms[1:]:
        alone |= decode([arm])
    assert together == alone
    assert engine.compiled_programs() == programs
    settings = [tuple(tokens for id_, tokens in alone.items() if id_.setting == arm.name) for arm in arms]
    assert len(set(settings)) > 3


def test_says_what_the_data_did_without(tmp_path):
    path = tmp_path / 'data.jsonl'
    copies = [f'{" ".join(f"word{i}" for i in range(20))} {end}' for end in range(40)]  # near-duplicates of each other
    path.write_text('\n'.join([*(json.dumps({'question': text}) for text in copies), 'no JSON', '{}']))
    said = left_out(experiment(Jsonl(str(path), skip_bad=True)))
    assert said['bad_lines_skipped'] == 2
    dropped = said['near_duplicates_dropped']
    assert dropped['test'] == 0  # the split of the highest rank keeps its own
    assert 10 < dropped['train'] < sum(dropped.values()) < 40
    assert left_out(experiment(Jsonl(str(path), skip_bad=True), split='all'))['near_duplicates_dropped'] == {}
    assert left_out(experiment(Gsm8k()))['bad_lines_skipped'] == 0


def test_every_engine_runs_what_its_rule_needs():
    ensemble, weights = fakes.make_ensemble(directions=1)
    loaded = Models(ensemble, weights, byte_fallback(), {})
    arms = [Arm('plain'), Arm('blend', ProductOfExperts()), Arm('sloped', fakes.Sloped())]

    def directions(loaded):
        made = make_engines(loaded, arms, fakes.DECODE, 0)
        return [[group.directions for group in engine.ensemble.groups] for engine, _ in made]

    assert directions(loaded) == [[], [0], [1]]
    # Of a difference there are only the two copies: together they stand for the proxy.
    copies = tuple(dataclasses.replace(group, difference=0.01) for group in ensemble.groups)
    both = dataclasses.replace(loaded, ensemble=dataclasses.replace(ensemble, groups=copies))
    assert directions(both) == [[], [1], [1]]
