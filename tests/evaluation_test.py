"""Evaluation: one program for many students, verdicts in the order of the prompts, scores against float64."""

from __future__ import annotations

import dataclasses
import itertools

import fakes
import jax
import numpy as np
import pytest

from adx.answers import Reader
from adx.batching import Example, batches
from adx.datasets.chat import Prompting
from adx.errors import ConfigError, InputError
from adx.evaluation import ROWS, Divergence, Exam, Likelihood, evaluate, make_exam, prompts_hash, student_engine
from adx.mesh import make_mesh, teacher_layout
from adx.models.transformer import make_model
from adx.types import Prompt, Sampling

MODEL = make_model(fakes.TEACHER)
EOS = 7
CONFIG = dataclasses.replace(fakes.DECODE, record='none')


def read(tokens):
    """Numbers in words of two letters, so that only what follows is a final-answer form."""
    return f'#### {sum(tokens) % 2}' if len(tokens) % 2 else f'maybe {sum(tokens) % 2}'


@pytest.fixture(scope='module')
def engine():
    return student_engine(MODEL, MODEL.init(0), make_mesh(), CONFIG, 0, [EOS])


def make(count=12, temperature=1.0, reader=None):
    requests = fakes.undefended(count=count, sampling=Sampling(temperature=temperature))
    requests = tuple(dataclasses.replace(request, max_new_tokens=1 + i % 7) for i, request in enumerate(requests))
    reader = reader or Reader(lambda text, gold: text == f'#### {gold}')
    return Exam(requests, tuple(str(i % 2) for i in range(count)), reader, read)


class TestEvaluate:
    def test_grades_every_prompt_in_order(self, engine):
        exam = make()
        [(name, found)] = evaluate(engine, {'a': MODEL.init(0)}, exam)
        done = {str(completion.id): completion for completion in engine.generate(exam.requests)}
        completions = [done[str(request.id)] for request in exam.requests]
        texts = [read(completion.tokens) for completion in completions]
        expected = [text == f'#### {gold}' for text, gold in zip(texts, exam.golds, strict=True)]
        assert (name, found.correct) == ('a', tuple(expected))
        assert found.accuracy == np.mean(expected)
        assert found.rates == {
            'unparsed': np.mean(['#' not in text for text in texts]),
            'truncated': np.mean([completion.stop == 'length' for completion in completions]),
            'lenient': np.mean([text[-1] == gold for text, gold in zip(texts, exam.golds, strict=True)]),
            'timed_out': 0,
        }
        assert 0 < found.accuracy < 1
        assert found.rates['lenient'] > found.accuracy
        assert found.prompts == prompts_hash(request.id for request in exam.requests)

    def test_students_share_one_program_and_differ(self, engine):
        exam = make(temperature=0.0)
        list(evaluate(engine, {'a': MODEL.init(0)}, exam))
        programs = engine.compiled_programs()
        students = {'a': MODEL.init(0), 'b': jax.tree.map(np.asarray, MODEL.init(5)), 'again': MODEL.init(0)}
        found = dict(evaluate(engine, students, exam))
        assert engine.compiled_programs() == programs
        assert found['a'] == found['again']
        assert found['a'] != found['b']

    def test_a_student_of_another_architecture_is_named(self, engine):
        other = make_model(fakes.PROXY).init(0)
        with pytest.raises(ConfigError, match="student 'p' is of another architecture"):
            list(evaluate(engine, {'p': other}, make()))

    def test_a_grader_that_runs_out_of_time_is_wrong_and_counted(self, engine):
        calls = itertools.count()

        def slow(text, gold):
            if next(calls) < 3:
                raise TimeoutError
            return True

        [(_, found)] = evaluate(engine, {'a': MODEL.init(0)}, make(reader=Reader(slow)))
        assert found.correct == (False,) * 3 + (True,) * 9
        assert found.rates['timed_out'] == 3 / 12


class TestExam:
    def test_prompts_without_gold_and_no_prompts_are_refused(self):
        reader = Reader(lambda text, gold: False)
        with pytest.raises(InputError, match='there are no prompts to grade'):
            make_exam([], None, Prompting(), reader, 4)
        with pytest.raises(InputError, match='gsm8k/test/3 has no gold answer'):
            make_exam([Prompt('gsm8k', 'test', '3', ())], None, Prompting(), reader, 4)


def examples(count=5):
    draw = np.random.default_rng(0)
    return [
        Example(f'{count - i}', tuple(draw.integers(0, fakes.VOCAB, 3).tolist()),
                tuple(draw.integers(0, fakes.VOCAB, n).tolist()))
        for i, n in enumerate(draw.integers(4, 70, count).tolist())
    ]  # fmt: skip


def log_probs(model, params, example):
    """float64 [completion, V] of the distributions that predict the completion."""
    tokens = np.array([[*example.prompt, *example.completion]])
    logits = np.asarray(model.apply(params, tokens, np.arange(tokens.shape[1])[None])[0][0], np.float64)
    logits = logits[len(example.prompt) - 1 : -1, : fakes.VOCAB]
    return logits - np.log(np.sum(np.exp(logits), axis=-1, keepdims=True))


PARAMS = MODEL.init(3)


def test_nll_is_that_of_each_trace_alone():
    rows = examples()
    expected = [-log_probs(MODEL, PARAMS, r)[range(len(r.completion)), r.completion].sum() for r in rows]
    scorer = Likelihood(MODEL)
    found = scorer.rows(PARAMS, rows)
    assert [tokens for _, tokens in found] == [len(row.completion) for row in rows]
    # float32 sums of up to 70 terms against float64: some units of the last place.
    np.testing.assert_allclose([nats for nats, _ in found], expected, rtol=1e-5)
    tokens = sum(len(row.completion) for row in rows)
    np.testing.assert_allclose(scorer.mean(PARAMS, rows), sum(expected) / tokens, rtol=1e-5)
    assert np.isnan(scorer.mean(PARAMS, []))


def test_nll_on_a_mesh_is_that_on_one_device_and_each_device_reads_its_own_rows():
    layout, rows = teacher_layout(make_mesh(4, 1, 2), MODEL.config.sizes), examples(9)
    params = {path: jax.device_put(x, layout.sharding(MODEL.axes[path])) for path, x in PARAMS.items()}
    alone, split = Likelihood(MODEL), Likelihood(MODEL, layout)
    expected, found = (np.array(one.rows(by, rows)) for one, by in ((alone, PARAMS), (split, params)))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    (_, batch), *_ = batches(rows, 4 * ROWS)
    whole, piece = (
        one._sums.lower(*given).compile().cost_analysis()['flops']
        for one, given in ((alone, (PARAMS, batch)), (split, (params, batch.on(layout))))
    )
    assert piece < whole / 6  # of 8 devices; sums and norms are not split over the model axis


def test_kl_is_from_the_teacher_to_the_student_on_the_teachers_text():
    student = make_model(dataclasses.replace(fakes.PROXY, vocab_rows=80))  # padded otherwise than the teacher
    rows, params = examples(), student.init(4)
    sums = []
    for row in rows:
        p, q = log_probs(MODEL, PARAMS, row), log_probs(student, params, row)
        sums.append(np.sum(np.exp(p) * (p - q)))
    expected = sum(sums) / sum(len(row.completion) for row in rows)
    np.testing.assert_allclose(Divergence(MODEL, student).mean(PARAMS, params, rows), expected, rtol=1e-4)
    assert abs(Divergence(MODEL, MODEL).mean(PARAMS, PARAMS, rows)) < 1e-6


def test_kl_needs_one_vocabulary():
    other = make_model(dataclasses.replace(fakes.PROXY, vocab_size=60))
    with pytest.raises(ConfigError, match='vocabularies of 61 and 60'):
        Divergence(MODEL, other)
