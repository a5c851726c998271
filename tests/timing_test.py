"""Arms are timed in turns, each with an engine of its own, whose programs all seeds share."""

from __future__ import annotations

import pytest
from studies import make_study, write_students

from adx import generation, pipeline, timing
from adx.loading import blueprint


def test_the_median_of_passes_counts_and_programs_are_kept(tmp_path, monkeypatch):
    experiment = make_study(write_students(tmp_path)).experiment
    models = pipeline.load_models(experiment, str(tmp_path), blueprint(experiment))
    made = generation.make_requests(experiment, generation.read_prompts(experiment), models.tokenizer)
    # Each pass over an arm reads the clock twice: 1, 5 and 2 seconds for the first, 2, 2 and 9 for the second.
    clock = iter([0, 1, 10, 12, 20, 25, 30, 32, 40, 42, 50, 59] * 2)
    monkeypatch.setattr(timing.time, 'perf_counter', lambda: next(clock))
    engines, make_engines = [], generation.make_engines
    monkeypatch.setattr(generation, 'make_engines', lambda *given: engines.append(make_engines(*given)) or engines[-1])
    found = timing.seconds_per_token(experiment, models, made, ['plain', 'poe'])
    tokens = {name: 2 / each for name, each in found.items()}  # 2 is the median of both
    assert tokens == {name: pytest.approx(round(count)) for name, count in tokens.items()}
    assert 0 < tokens['plain'] <= experiment.decode.slots * experiment.max_new_tokens
    programs = [engine.compiled_programs() for [(engine, _)] in engines]
    assert timing.seconds_per_token(experiment, models, made, ['plain', 'poe']) == found
    assert [engine.compiled_programs() for [(engine, _)] in engines] == [*programs, *programs]
