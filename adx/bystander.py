"""A model that is neither teacher nor proxy: a study's judge, or the attackers' own."""

from __future__ import annotations

from collections.abc import Sequence

from adx.batching import Example
from adx.datasets.chat import encode_conversation, encode_prompt
from adx.decoding.engine import DecodeConfig
from adx.defences import Undefended
from adx.evaluation import Likelihood, roomy, student_engine
from adx.hashing import content_hash
from adx.lessons import Messages
from adx.loading import load_alone
from adx.mesh import make_mesh
from adx.study import Student
from adx.types import Request, RequestId, Sampling


def told(instruction: str, text: str) -> str:
    """What a model reads that is to do something with a text."""
    return f'{instruction}\n\n{text}'


class Bystander:
    """Reads texts and writes them, in its own tokens."""

    def __init__(self, student: Student):
        self.student = student
        self.loaded, self.tokenizer = load_alone(student.source)
        self._likelihood = Likelihood(self.loaded.model)

    def example(self, id_: str, messages: Messages, text: str) -> Example:
        """A conversation and what was answered."""
        return Example(id_, *encode_conversation(messages, text, self.tokenizer, self.student.prompting))

    def nll(self, examples: Sequence[Example]) -> list[tuple[float, int]]:
        """(nats, tokens) of each completion, in order. Ids must differ."""
        return self._likelihood.rows(self.loaded.params, examples)

    def write(
        self, asked: Sequence[str], samples: int, sampling: Sampling, max_new_tokens: int, decode: DecodeConfig,
        seed: int,
    ) -> list[list[str]]:  # fmt: skip
        """`samples` answers to each text; '' for one that did not end by itself, or whose text leaves no room for it.
        Equal texts have equal answers.
        """
        requests: dict[str, list[Request]] = {}
        room = self.loaded.model.config.max_length - max_new_tokens
        for text in dict.fromkeys(asked):
            tokens = encode_prompt(({'role': 'user', 'content': text},), self.tokenizer, self.student.prompting)
            if len(tokens) <= room:
                ids = [RequestId('own', 'own', content_hash(text), i, self.student.name) for i in range(samples)]
                requests[text] = [Request(i, tokens, max_new_tokens, sampling, Undefended(), False) for i in ids]
        every = [request for group in requests.values() for request in group]
        if not every:
            return [[''] * samples for _ in asked]
        config, eos = roomy(decode, every), sorted(self.tokenizer.eos_ids)
        engine = student_engine(self.loaded.model, self.loaded.params, make_mesh(), config, seed, eos)
        done = {one.id: one for one in engine.generate(every)}

        def text_of(request: Request) -> str:
            one = done[request.id]
            return self.tokenizer.decode(one.tokens) if one.stop == 'eos' else ''

        return [[text_of(request) for request in requests.get(text, ())] or [''] * samples for text in asked]
