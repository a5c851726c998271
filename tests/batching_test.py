"""Streams of rows: every example once an epoch, an order that a step alone decides, rows that hold what they say."""

from __future__ import annotations

import numpy as np
import pytest

from adx import batching
from adx.batching import Corpus, Example, Stream, pack

EXAMPLES = [Example(str(i), (1,) * (1 + i % 3), tuple(range(1, 2 + 9 * i))) for i in range(13)]


def read(rows, student=0) -> list[tuple[int, ...]]:
    """The completions in a batch of one student."""
    return [tuple(t[m]) for t, m in zip(rows.tokens_BL[student], rows.targets_BL[student], strict=True) if m.any()]


def test_an_epoch_reads_every_example_once_each_in_another_order():
    stream = Stream([Corpus(EXAMPLES, 7)], 4, 256)
    epochs = [[c for i in range(4) for c in read(stream(4 * epoch + i))] for epoch in range(3)]
    assert all(sorted(epoch) == sorted(e.completion for e in EXAMPLES) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_a_batch_depends_on_the_step_alone_and_on_its_own_corpus():
    stream, fresh = (Stream([Corpus(EXAMPLES, 7), Corpus(EXAMPLES[:5], 3)], 4, 256) for _ in range(2))
    for i in (0, 5, 1):
        stream(i)
    alone = Stream([Corpus(EXAMPLES[:5], 3)], 4, 256)
    for i in (6, 2):
        a, b = stream(i), fresh(i)
        assert all((getattr(a, n) == getattr(b, n)).all() for n in ('tokens_BL', 'targets_BL', 'weights_BL'))
        assert read(a, 1) == read(alone(i))


def test_lengths_are_few_and_rows_of_one_length_stand_together():
    stream = Stream([Corpus(EXAMPLES, 0)], 4, 200)
    lengths = [stream(i).tokens_BL.shape[2] for i in range(4)]
    assert sorted(lengths) == [64, 128, 128, 128]


def test_weights_and_extras_lie_at_their_targets():
    extras = {'ids': {e.id: np.arange(2 * len(e.completion)).reshape(-1, 2) for e in EXAMPLES}}
    rows = Stream([Corpus(EXAMPLES[2:3], 0, {'2': -0.5}, extras)], 2, 64)(0)
    ids = rows.extras['ids'][0, 0]
    np.testing.assert_array_equal(ids[rows.targets_BL[0, 0]], extras['ids']['2'])
    assert not ids[~rows.targets_BL[0, 0]].any()
    assert set(rows.weights_BL[0, 0, rows.targets_BL[0, 0]]) == {-0.5}
    assert not rows.weights_BL[0, 1].any()


def test_packed_rows_hold_every_example_once_and_say_where():
    rows = pack(EXAMPLES, 130)
    assert sorted(e for row in rows for e in row) == sorted(EXAMPLES)
    assert all(sum(len(e.prompt) + len(e.completion) for e in row) <= 130 for row in rows)
    batch = Stream([Corpus(EXAMPLES, 0)], len(rows), 130, pack=True)(0)
    found = []
    for tokens, segments, positions, targets in zip(
        batch.tokens_BL[0], batch.segments_BL[0], batch.positions_BL[0], batch.targets_BL[0], strict=True
    ):
        for segment in range(1, segments.max() + 1):
            mine = segments == segment
            np.testing.assert_array_equal(positions[mine], np.arange(mine.sum()))
            found.append((tuple(tokens[mine & ~targets]), tuple(tokens[mine & targets])))
    assert sorted(found) == sorted(e[1:] for e in EXAMPLES)


def test_what_does_not_fit_is_dropped_and_counted():
    stream = Stream([Corpus([*EXAMPLES, Example('empty', (1,), ())])], 4, 64)
    assert stream.dropped == (1 + sum(len(e.prompt) + len(e.completion) > 64 for e in EXAMPLES),)
    with pytest.raises(ValueError, match='student 0 has no example'):
        Stream([Corpus(EXAMPLES[-1:])], 4, 64)


def test_long_rows_are_padded_by_half_at_most():
    assert [batching.bucket(size) for size in (1, 64, 65, 128, 129, 192, 193, 256, 257, 384, 385)] == [
        64, 64, 128, 128, 192, 192, 256, 256, 384, 384, 512,
    ]  # fmt: skip
    assert all(batching.bucket(size) < 1.5 * size for size in range(129, 5000))
