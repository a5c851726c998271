"""Arms are timed in turns, each with an engine of its own that compiles once."""

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
    stopwatch = timing.Stopwatch()
    found = stopwatch.seconds_per_token(experiment, models, made, ['plain', 'poe'])
    tokens = {name: 2 / each for name, each in found.items()}  # 2 is the median of both
    assert tokens == {name: pytest.approx(round(count)) for name, count in tokens.items()}
    assert 0 < tokens['plain'] <= experiment.decode.slots * experiment.max_new_tokens
    programs = {name: engine.compiled_programs() for name, engine in stopwatch._engines.items()}
    assert stopwatch.seconds_per_token(experiment, models, made, ['plain', 'poe']) == found
    assert {name: engine.compiled_programs() for name, engine in stopwatch._engines.items()} == programs
