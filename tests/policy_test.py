"""Licences: who is served under which terms, together in one batch, each with its own numbers and key."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import hashlib
import json
import subprocess
import sys

import fakes
import jax.numpy as jnp
import pytest

from adx import generation, pipeline, struct
from adx.datasets import Jsonl
from adx.decoding.engine import DecodeConfig, Engine
from adx.defences import Chain, ProductOfExperts, Undefended
from adx.errors import ConfigError
from adx.experiment import Arm, Experiment, ModelSource, check, experiment_hash, from_json, override, policy_hash, sweep
from adx.experiment import to_json as experiment_json
from adx.journal import read_records
from adx.policy import Customer, Policy, Terms, is_keyed, with_key
from adx.storage import Workdir
from adx.types import Array, Prompt, Sampling, Stateless
from launch.config import load_config
from tests import tiny


@struct.dataclass
class Keyed(Stateless):
    """A stand-in for rules with a key: favours the tokens that the key's words pick."""

    strength: float | Array = 8.0
    key: tuple[float | Array, ...] = (0.0, 0.0, 0.0, 0.0)

    def adjust(self, views, state):
        words = [jnp.asarray(word, jnp.uint32) for word in self.key]
        mixed_V = jnp.arange(views.teacher_V.shape[0], dtype=jnp.uint32)
        for word in words:
            mixed_V = (mixed_V ^ word) * jnp.uint32(2654435761)
        return views.teacher_V + self.strength * (mixed_V >> 31), state


POLICY = Policy(
    customers=(Customer('acme', 'usage'), Customer('labs', 'research'), Customer('partner', 'distillation')),
    terms=(
        Terms('usage', ProductOfExperts(gamma=0.5)),
        Terms('research', ProductOfExperts(gamma=0.1)),
        Terms('distillation', None),
    ),
)
RULE = Arm('poe', ProductOfExperts(gamma=0.9), Sampling(temperature=0.8))


def experiment(policy=POLICY, arms=(RULE,), **fields) -> Experiment:
    sources = {'teacher': ModelSource('none'), 'proxies': (ModelSource('none'),)}
    return Experiment(dataset=Jsonl('none'), policy=policy, arms=arms, disclosure='public', **sources, **fields)


def prompts(*customers: str) -> list[Prompt]:
    messages = ({'role': 'user', 'content': 'How many?'},)
    return [Prompt('d', 'all', str(i), messages, None, customer) for i, customer in enumerate(customers)]


def derive(key_id: str) -> int:
    return int.from_bytes(hashlib.sha256(key_id.encode()).digest()[:8])


def with_policy(**fields) -> Policy:
    return dataclasses.replace(POLICY, **fields)


def test_a_policy_checks_and_round_trips():
    check(experiment())
    for policy in (POLICY, None, with_policy(default='research')):
        base = experiment(policy)
        assert from_json(json.loads(json.dumps(experiment_json(base)))) == base
    check(experiment(Policy((), (Terms('usage', None),)), (Arm('plain'),)))
    changed = override(experiment(), ['policy.customers.acme.licence=research', 'policy.terms.0.defence.gamma=1'])
    assert changed.policy.customers[0].licence == 'research'
    assert changed.policy.terms[0].defence.gamma == 1.0


@pytest.mark.parametrize(
    ('policy', 'message'),
    [
        (with_policy(customers=POLICY.customers * 2), "policy.customers has 'acme' twice"),
        (with_policy(customers=(Customer('', 'usage'),)), "policy.customers has one named ''"),
        (with_policy(customers=(Customer('x', 'usage', 'k'),)), "policy.customers.x.key_id = 'k' names a key"),
        (with_policy(customers=(Customer('x', 'distillation', 'k'),)), "licence 'distillation' has no rule that"),
        (with_policy(customers=(Customer('x', 'usages'),)), "policy.customers.x.licence = 'usages' is unknown"),
        (with_policy(terms=POLICY.terms[:2]), "partner.licence = 'distillation' has no terms; .*'usage', 'research'"),
        (with_policy(terms=POLICY.terms * 2), "policy.terms has 'usage' twice"),
        (Policy((), (Terms('free', None),)), "policy.terms.licence = 'free' is unknown"),
        (with_policy(default='researcher'), "policy.default = 'researcher' is unknown.*Did you mean 'research'"),
        (Policy((), POLICY.terms[:1], 'research'), "policy.default = 'research' has no terms"),
        (
            with_policy(terms=(*POLICY.terms[:2], Terms('distillation', Undefended()))),
            r"terms of 'usage' and 'distillation' have the rules ProductOfExperts\(.*Undefended\(\); they may differ",
        ),
        (with_policy(terms=(Terms('usage', ProductOfExperts(2.0)), *POLICY.terms[1:])), "of 'usage': .*gamma = 2.0"),
        (with_policy(terms=(Terms('usage', 'poe'), *POLICY.terms[1:])), "'poe' is no defence"),
        ('usage', "policy = 'usage' is not allowed"),
    ],
)
def test_a_bad_policy_is_named(policy, message):
    with pytest.raises(ConfigError, match=message) as caught:
        check(experiment(policy))
    assert '\n' not in str(caught.value)


def test_arms_have_the_structure_of_the_terms():
    with pytest.raises(ConfigError, match=r"arm 'plain' has the rule Undefended\(\) and policy.terms of 'usage'"):
        check(experiment(arms=(RULE, Arm('plain'))))
    with pytest.raises(ConfigError, match='the policy gives the numbers of rules'):
        sweep(experiment(), ['arms.poe.defence.gamma=0.1,0.2'])
    check(sweep(experiment(), ['arms.poe.sampling.temperature=0.1,0.2']))


def test_every_request_has_the_terms_of_its_customer():
    customers = ('acme', 'partner', 'labs', '', 'acmee')
    made = generation.make_requests(experiment(samples=2), prompts(*customers), tiny.make_tokenizer())
    rows = {request.id.row: (request.defence.gamma, request.defended) for request in made.requests.values()}
    assert rows == {'0': (0.5, True), '1': (0.9, False), '2': (0.1, True)}
    assert {request.sampling for request in made.requests.values()} == {RULE.sampling}
    assert set(made.rejected) == {f'd/all/{row}/{sample}/poe' for row in '34' for sample in (0, 1)}
    assert made.rejected['d/all/3/0/poe'].startswith("customer '' is not in policy.customers")
    assert made.rejected['d/all/4/0/poe'].endswith("Did you mean 'acme'?")
    default = experiment(with_policy(default='research'))
    made = generation.make_requests(default, prompts(*customers), tiny.make_tokenizer())
    assert not made.rejected
    assert [request.defence.gamma for request in made.requests.values()] == [0.5, 0.9, 0.1, 0.1, 0.1]
    plain = generation.make_requests(experiment(None), prompts(*customers), tiny.make_tokenizer())
    assert {(request.defence, request.defended) for request in plain.requests.values()} == {(RULE.defence, True)}


def test_a_key_is_four_words_that_float32_holds():
    key = 0x0123_4567_89AB_FFFF
    words = (float(0x0123), float(0x4567), float(0x89AB), float(0xFFFF))
    assert with_key(Keyed(2.0), key) == Keyed(2.0, words)
    assert all(int(jnp.float32(word)) == word for word in words)
    chain = Chain((ProductOfExperts(0.1), Keyed(3.0)))
    assert with_key(chain, key) == Chain((ProductOfExperts(0.1), Keyed(3.0, words)))
    assert is_keyed(chain)
    assert not is_keyed(ProductOfExperts(0.1))
    assert not is_keyed(None)


KEYED = Policy(
    customers=(Customer('acme', 'usage', 'a'), Customer('bolt', 'usage', 'b'), Customer('labs', 'research', 'l')),
    terms=(Terms('usage', Keyed(8.0)), Terms('research', Keyed(2.0)), Terms('distillation', None)),
    default='distillation',
)


def test_a_key_that_nobody_derives_is_named():
    keyed = experiment(KEYED, (Arm('keyed', Keyed()),))
    check(keyed)
    with pytest.raises(ConfigError, match="customer 'acme' has key_id = 'a'"):
        generation.make_requests(keyed, prompts('acme'), tiny.make_tokenizer())
    made = generation.make_requests(keyed, prompts('partner'), tiny.make_tokenizer())
    assert [request.defended for request in made.requests.values()] == [False]


@functools.cache
def make_engine() -> Engine:
    teacher = dataclasses.replace(fakes.TEACHER, vocab_size=tiny.VOCAB, vocab_rows=tiny.VOCAB)
    config = DecodeConfig(slots=4, chunk=4, buckets=(32,), prefill_rows=2, cache_length=40)
    return Engine(*fakes.make_ensemble(teacher=teacher, count=0), config)


class TestOneBatch:
    """Rows of all licences in one engine, at the same prompt."""

    def decode(self, requests):
        return {str(done.id): done.tokens for done in make_engine().generate(list(requests))}

    def requests(self, *customers, policy=KEYED):
        arms = (Arm('keyed', Keyed()),)
        run = experiment(policy, arms, max_new_tokens=8, decode=DecodeConfig(buckets=(32,), cache_length=40))
        return generation.make_requests(run, prompts(*customers), tiny.make_tokenizer(), derive).requests

    def test_no_row_gets_anothers_key_or_strength(self):
        together = self.requests('acme', 'bolt', 'labs', 'bolt', 'acme', 'labs')
        assert [request.defence for request in together.values()][:3] == [
            with_key(Keyed(8.0), derive('a')), with_key(Keyed(8.0), derive('b')), with_key(Keyed(2.0), derive('l')),
        ]  # fmt: skip
        done = self.decode(together.values())
        programs = make_engine().compiled_programs()
        for id_, request in together.items():
            assert self.decode([request]) == {id_: done[id_]}
        swapped = self.decode(self.requests('bolt', 'labs', 'acme', 'acme', 'labs', 'bolt').values())
        assert sum(swapped[id_] != done[id_] for id_ in done) >= 5
        assert make_engine().compiled_programs() == programs

    def test_a_distillation_row_is_the_teachers(self):
        mixed = self.requests('acme', 'partner', 'labs', 'partner')
        done = self.decode(mixed.values())
        zero = [dataclasses.replace(row, defence=Keyed(0.0), defended=True) for row in mixed.values()]
        teacher = self.decode(zero)
        assert [id_ for id_ in done if done[id_] == teacher[id_]] == ['d/all/1/0/keyed', 'd/all/3/0/keyed']


CUSTOMERS = ('acme', 'labs', 'acme', 'stranger')


@pytest.fixture
def run(tmp_path, monkeypatch):
    """An experiment of four questions by four customers; its engines are made once."""
    rows = [{'question': f'How many are {n}?', 'customer': customer} for n, customer in enumerate(CUSTOMERS)]
    (tmp_path / 'data.jsonl').write_text('\n'.join(map(json.dumps, rows)))
    teacher = tiny.write_teacher(tmp_path / 'teacher')
    path = tiny.write_config(tmp_path / 'config.py', teacher, f'Jsonl({str(tmp_path / "data.jsonl")!r})', 'all')
    made: list = []
    make_engines = generation.make_engines
    monkeypatch.setattr(generation, 'make_engines', lambda *given: made or made.extend(make_engines(*given)) or made)
    decode = DecodeConfig(slots=2, chunk=4, buckets=(64,), prefill_rows=2, cache_length=80, record='scalars')
    terms = (*POLICY.terms[:2], Terms('distillation', ProductOfExperts(gamma=0.0)))
    fields = {'arms': (RULE,), 'policy': with_policy(terms=terms), 'limit': 0, 'max_new_tokens': 4, 'decode': decode}
    return dataclasses.replace(load_config(path), **fields)


def test_the_summary_counts_traces_per_licence_and_fallbacks():
    # In a process of its own: programs define their flags when they are imported.
    code = (
        'from adx.pipeline import Report; from launch.run import summary; '
        "print(summary(Report(4, 0, 0, {}, terms={'usage': 1, 'research': 2}))); "
        'print(summary(Report(4, 0, 0, {}, fallbacks=3)))'
    )
    out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.splitlines()
    assert out[0].endswith('occupancy 0%; by licence, all together: 2 research, 1 usage')
    assert out[1].endswith('occupancy 0%; 3 tokens fell back to the teacher: a proxy gave nan or inf')


def generate(run, path, *place) -> pipeline.Report:
    return pipeline.generate(run, str(path), pipeline.Place(*place), lambda *_: None, contextlib.nullcontext)


def test_a_new_policy_is_for_requests_that_are_not_served_yet(run, tmp_path):
    old = generate(run, tmp_path / 'run', 0, 2)  # the first and the third row
    assert old.terms == {'usage': 2}
    changed = override(run, ['policy.terms.0.defence.gamma=0.7', 'policy.customers.labs.licence=usage'])
    assert experiment_hash(changed) == experiment_hash(run)
    assert policy_hash(changed) != policy_hash(run)
    report = generate(changed, tmp_path / 'run')
    assert (report.done_before, report.done, report.rejected, report.exit_code) == (2, 1, 1, 5)
    workdir = Workdir(tmp_path / 'run')
    traces = {trace.request_id: trace for trace in workdir.traces()}
    found = [(traces[i].customer, traces[i].terms, traces[i].defence['gamma'], traces[i].policy) for i in traces]
    expected = [('acme', 'usage', 0.5, policy_hash(run))] * 2 + [('labs', 'usage', 0.7, policy_hash(changed))]
    assert sorted(found) == sorted(expected)
    assert len({trace.experiment for trace in traces.values()}) == 1
    kept = {path.stem: json.loads(path.read_text())['policy'] for path in (workdir.private / 'policies').iterdir()}
    assert {name: from_json(policy) for name, policy in kept.items()} == {
        policy_hash(run): run.policy, policy_hash(changed): changed.policy,
    }  # fmt: skip
    [(_, record)] = read_records(workdir.private / 'rejected')
    assert record['policy'] == policy_hash(changed)
    assert collections.Counter(reason[:19] for reason in workdir.rejected().values()) == {"customer 'stranger'": 1}
    # Served once the policy knows it: what was rejected is not served yet either.
    listed = override(changed, ['policy.default=distillation'])
    report = generate(listed, tmp_path / 'run')
    assert (report.done_before, report.done, dict(report.terms)) == (3, 1, {'usage': 3, 'distillation': 1})
