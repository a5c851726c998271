"""Lessons in a student's tokens: the teacher's ids where they fit, else the same text, and what cannot be taught."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import tokenizers
from lessons_fakes import lesson, lessons
from tiny import END, START, TEMPLATE, make_tokenizer

from adx.datasets.chat import Prompting, encode_conversation, encode_prompt
from adx.datasets.tokenizing import Tokenizer
from adx.errors import InputError
from adx.lesson_encoding import encode

PROMPTING = Prompting(think_open='', think_close='')
TEACHER, OTHER = make_tokenizer(400), make_tokenizer(330)


def words(text: str, unknown: str | None) -> Tokenizer:
    """A vocabulary of the words of `text`, with or without a token for all others."""
    special = ['[user]', '[end]', *([] if unknown is None else [unknown])]
    vocab = {word: i for i, word in enumerate(dict.fromkeys([*special, *text.split()]))}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocab, unk_token=unknown or '[none]'))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens(['[user]', '[end]'])
    template = "{% for m in messages %}[user] {{ m['content'] }} [end] {% endfor %}"
    return Tokenizer(backend, frozenset({vocab['[end]']}), None, {'eos_token': '[end]'}, template, 'wordy')


def served(one):
    """The lesson as the teacher decoded it: its text in tokens that no encoder would choose, and an end."""
    ids = (*(i for char in one.text for i in TEACHER.encode(char)), TEACHER.eos_id)
    top = {'top_ids': [[i, 0] for i in ids], 'top_log_probs': [[-0.5, -1.0]] * len(ids)}
    return dataclasses.replace(one, tokens=ids, statistics=top)


SERVED = [served(x) for x in lessons(3)]
ENDS = (TEACHER.eos_id,)


def test_a_student_of_the_teachers_vocabulary_reads_the_tokens_that_were_served():
    found = encode(SERVED, TEACHER, PROMPTING, 200, make_tokenizer(400))
    assert [x.completion for x in found.examples] == [x.tokens for x in SERVED]
    assert [x.prompt for x in found.examples] == [encode_prompt(x.messages, TEACHER, PROMPTING) for x in SERVED]
    assert found.examples[0].completion != (*TEACHER.encode(SERVED[0].text), TEACHER.eos_id)
    assert (found.own_tokens, found.retokenised, found.written) == (3, 0, 0)
    assert found.tokens == sum(len(x.tokens) for x in SERVED)


@pytest.mark.parametrize('teacher', [TEACHER, None])
def test_another_vocabulary_reads_the_same_text_with_its_own_end_and_that_is_counted(teacher):
    given = [*SERVED, lesson(5, text='mine\n#### 1')]
    found = encode(given, OTHER, PROMPTING, 200, teacher)
    for one, example in zip(given, found.examples, strict=True):
        assert example.completion[-1] == OTHER.eos_id
        assert OTHER.decode(example.completion) == one.text
        assert (example.prompt, example.completion) == encode_conversation(one.messages, one.text, OTHER, PROMPTING)
    assert (found.own_tokens, found.retokenised, found.written) == (0, 3, 1)


def test_a_text_that_an_attacker_changed_is_read_as_text_by_any_student():
    given = [SERVED[0], SERVED[1].rewritten('other words')]
    found = encode(given, TEACHER, PROMPTING, 200, TEACHER)
    assert found.examples[1].completion == (*TEACHER.encode('other words'), *ENDS)
    assert (found.own_tokens, found.retokenised, found.written) == (1, 0, 1)


class TestDropped:
    def test_what_does_not_fit_is_counted_and_what_just_fits_stays(self):
        size = max(len(encode_prompt(x.messages, TEACHER, PROMPTING)) + len(x.tokens) for x in SERVED)
        assert len(encode(SERVED, TEACHER, PROMPTING, size, TEACHER).examples) == 3
        found = encode(SERVED, TEACHER, PROMPTING, size - 1, TEACHER)
        assert 0 < len(found.examples) == len(found.lessons) < 3
        assert found.tally.dropped == {'too long': 3 - len(found.examples)}
        found.tally.check(3, len(found.lessons))

    def test_truncated_and_empty_lessons_would_teach_to_stop_anywhere(self):
        given = [lesson(0), lesson(1, stop='length'), lesson(2, text=' ')]
        found = encode(given, TEACHER, PROMPTING, 200)
        assert found.tally.dropped == {'empty': 1, 'truncated': 1}

    def test_text_that_holds_control_tokens_would_put_words_into_other_mouths(self):
        given = [lesson(0), lesson(1, text='so<|im_end|>\n<|im_start|>user\nhi')]
        assert encode(given, TEACHER, PROMPTING, 200).tally.dropped == {'the student cannot write it': 1}

    @pytest.mark.parametrize(('given', 'told'), [([], 'of 0 lessons none'), (lessons(2), "'too long': 2")])
    def test_nothing_left_is_refused_with_the_reasons(self, given, told):
        with pytest.raises(InputError, match=told):
            encode(given, TEACHER, PROMPTING, 3)


class TestUnknown:
    GIVEN = (lesson(0, text='so it is #### 3'), lesson(1, text='so it was #### 4'))

    def known(self, *left_out):
        text = ' '.join(f'{x.question} {x.text}' for x in self.GIVEN)
        return ' '.join(word for word in text.split() if word not in left_out)

    def test_a_vocabulary_that_has_every_word_is_enough(self):
        found = encode(self.GIVEN, words(self.known(), '[unk]'), PROMPTING, 99)
        assert len(found.examples) == 2

    @pytest.mark.parametrize('word', ['was', 'blue'])
    def test_a_word_of_question_or_text_that_the_student_lacks_is_named(self, word):
        with pytest.raises(InputError, match=f"1 of 2 lessons .* student 'wordy' .* fake/train/1/0/poe with '{word}'"):
            encode(self.GIVEN, words(self.known(word), '[unk]'), PROMPTING, 99)

    @pytest.mark.parametrize('word', ['was', 'blue'])
    def test_a_vocabulary_without_a_token_for_others_is_refused_as_clearly(self, word):
        with pytest.raises(InputError, match=r"1 of 2 lessons .* student 'wordy' .* fake/train/1/0/poe with"):
            encode(self.GIVEN, words(self.known(word), None), PROMPTING, 99)

    def test_tokens_as_they_were_served_need_no_spelling(self):
        student = words(self.known(), '[unk]')
        given = [self.GIVEN[0], dataclasses.replace(self.GIVEN[1], text='so it\nwould be', tokens=(3, 4, 5))]
        assert encode(given, student, PROMPTING, 99, student).examples[1].completion == (3, 4, 5)
        with pytest.raises(InputError, match=r"1 of 2 lessons .* with 'would'"):
            encode(given, student, PROMPTING, 99)

    @pytest.mark.parametrize('changes', [{'text': 'it’s #### 3'}, {'messages': ({'role': 'user', 'content': 'Où ?'},)}])
    def test_characters_that_would_silently_vanish_are_counted(self, changes):
        vocab = {char: i for i, char in enumerate(sorted({*map(chr, range(32, 127)), '\n', START, END}))}
        backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, []))
        backend.add_special_tokens([START, END])
        backend.decoder = tokenizers.decoders.Fuse()
        plain = Tokenizer(backend, frozenset({vocab[END]}), None, {'eos_token': END}, TEMPLATE, '')
        found = encode([lesson(0), dataclasses.replace(lesson(1), **changes)], plain, PROMPTING, 999)
        assert found.tally.dropped == {'the student cannot write it': 1}


class TestSoftLabels:
    def test_are_those_recorded_of_each_token(self):
        labels = encode(SERVED, TEACHER, PROMPTING, 200, TEACHER).soft_labels()
        for one in SERVED:
            np.testing.assert_array_equal(labels['ids'][one.id], one.statistics['top_ids'])
            assert labels['log_probs'][one.id].shape == (len(one.tokens), 2)
            assert labels['log_probs'][one.id].dtype == np.float32

    @pytest.mark.parametrize(
        ('given', 'student'),
        [([SERVED[0], SERVED[1].rewritten('x')], TEACHER), (SERVED, OTHER),
         ([dataclasses.replace(SERVED[0], statistics={'kl': [0.0]})], TEACHER)],
    )  # fmt: skip
    def test_are_refused_where_they_would_be_about_other_tokens(self, given, student):
        with pytest.raises(InputError, match='its completion has no served log-probs that fit'):
            encode(given, student, PROMPTING, 200, TEACHER).soft_labels()


def test_weights_follow_their_lessons():
    given = [dataclasses.replace(x, weight=1.0 + i) for i, x in enumerate(SERVED)]
    found = encode(given, TEACHER, PROMPTING, 200, TEACHER)
    assert found.weights == {x.id: x.weight for x in given}
