"""The nouns of adx: what flows between stages, and the protocols of menu options.

Axis legend. A tensor's name ends in its axes and einsum uses the same letters.

    B batch (rows, slots)      L length (tokens of a prompt)   S cache length
    V vocabulary               D model width                   F feed-forward width
    H query heads              G key/value heads               R query heads per key/value head
    K head size                N proxies                       M directions (of all proxies)
    T steps of one device chunk
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax

from adx import struct
from adx.fields import hint

Array = jax.Array
State = Any  # a pytree of arrays that a defence carries from one token to the next


class RequestId(NamedTuple):
    """Which trace this is. The key of a row's randomness leaves `setting` out (see `noise_name`)."""

    dataset: str
    split: str
    row: str
    sample: int
    setting: str

    def __str__(self) -> str:
        return f'{self.dataset}/{self.split}/{self.row}/{self.sample}/{self.setting}'

    @property
    def prompt_id(self) -> str:
        """What the samples of one prompt share, under every setting."""
        return f'{self.dataset}/{self.split}/{self.row}'

    @property
    def noise_name(self) -> str:
        """Names the randomness of the row: arms of a comparison share it."""
        return f'{self.prompt_id}/{self.sample}'

    @staticmethod
    def parse(text: str) -> RequestId:
        dataset, split, row, sample, setting = text.split('/')
        return RequestId(dataset, split, row, int(sample), setting)


@dataclasses.dataclass(frozen=True)
class Prompt:
    """One question: chat `messages` ({'role', 'content'}), its place in the data, the gold `answer` if known.

    customer: who asks, as a policy names them; '' where the data does not say.
    """

    dataset: str
    split: str
    row: str
    messages: tuple[dict[str, str], ...]
    answer: str | None = None
    customer: str = ''

    @property
    def id(self) -> str:
        """`prompt_id` of the traces that answer it."""
        return f'{self.dataset}/{self.split}/{self.row}'


@struct.dataclass
class Sampling:
    """Per-row sampling numbers.

    temperature: >= 0; 0 takes the argmax of the adjusted scores.
    top_k: >= 0, 0 keeps all; top_p: (0, 1], 1 keeps all; min_p: [0, 1), 0 keeps all, relative to max p.
    All three are taken from the teacher's distribution at `temperature`; a token must pass all of them.
    """

    temperature: float | Array = 1.0
    top_k: int | Array = 0
    top_p: float | Array = 1.0
    min_p: float | Array = 0.0

    def check(self) -> None:
        """Raises ValueError naming the field, its value and the allowed range."""
        check_range('Sampling.temperature', self.temperature, 0.0)
        check_range('Sampling.top_k', self.top_k, 0)
        check_range('Sampling.top_p', self.top_p, 0.0, 1.0, open_low=True)
        check_range('Sampling.min_p', self.min_p, 0.0, 1.0)


@struct.dataclass
class Views:
    """What a defence sees of one row at one position. Log-probabilities are float32 at `temperature`.

    teacher_V: the teacher's log-probs, normalised over the truncation set and meaningless outside it; inside a Chain,
      the previous rule's result.
    proxies_NV: each proxy's log-probs, never truncated; shape [0, V] when no proxy runs.
    tangents_MV: derivatives of the proxies' log-probs at temperature 1, one per direction and centred (their mean under
      the proxy is 0); proxy n's directions stand together, M / N of them. None when the defence wants none.
    allowed_V: bool, the truncation set taken from the teacher, without protected tokens unless all of it is
      protected; at least one token is True.
    open_mass: the teacher's probability of allowed_V within the truncation set; the rest is on protected tokens.
    token, position: the token just read and its index in the sequence; the result is for position + 1.
    key: a PRNG key of this row and position, independent of the one that samples.
    """

    teacher_V: Array
    proxies_NV: Array
    allowed_V: Array
    temperature: Array
    token: Array
    position: Array
    key: Array
    open_mass: Array
    tangents_MV: Array | None = None


@runtime_checkable
class Defence(Protocol):
    """Arithmetic on the log-probs of one row. A `struct.dataclass`: numbers are leaves, structure is static.

    wants_proxies, wants_tangents: what decoding must run for it.
    is_argmax: the rule puts all its mass on one token, so its KL is a step function of any strength.
    """

    @property
    def wants_proxies(self) -> bool: ...

    @property
    def wants_tangents(self) -> bool: ...

    @property
    def is_argmax(self) -> bool: ...

    def check(self) -> None:
        """Raises ValueError naming the field, its value and the allowed range. Called on Python numbers."""
        ...

    def init(self) -> State:
        """The decode state of one row before its first token; reset when a slot is refilled."""
        ...

    def adjust(self, views: Views, state: State) -> tuple[Array, State]:
        """Returns scores_V (float32, log-probs up to a constant, read inside `allowed_V` only) and the state."""
        ...


class Stateless:
    """Defaults of a defence that carries nothing between tokens, to inherit from. Reads the teacher only."""

    wants_proxies = False
    wants_tangents = False
    is_argmax = False

    def check(self) -> None:
        pass

    def init(self) -> State:
        return ()


@dataclasses.dataclass(frozen=True)
class Request:
    """One trace to decode: prompt token ids, how to sample, and the numbers of the defence for this row.

    defended: False serves the teacher's own tokens, in the same program and under the same noise.
    """

    id: RequestId
    tokens: tuple[int, ...]
    max_new_tokens: int
    sampling: Sampling
    defence: Defence
    defended: bool = True


POISONED = 'poisoned'


@dataclasses.dataclass(frozen=True)
class Completion:
    """What decoding returns for one request.

    tokens: the new token ids, an end-of-sequence token included when that is why it stopped.
    stop: 'eos', 'length' or 'stop_string'; POISONED where the teacher gave no finite numbers after these tokens.
    statistics: per-token lists of the same length as `tokens`, only what was asked for; 'fallback' wherever a token
      had to be the teacher's for want of a finite proxy.
    """

    id: RequestId
    tokens: tuple[int, ...]
    stop: str
    statistics: dict[str, list[Any]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Trace:
    """A finished trace as the journal keeps it, one JSON object a line. `text` = reasoning + answer as served.

    policy: the hash of the policy that it was served under, '' without one; terms: the licence whose terms it had.
    """

    request_id: str
    messages: tuple[dict[str, str], ...]
    text: str
    reasoning: str
    answer: str
    tokens: tuple[int, ...]
    stop: str
    prompt_tokens: int
    defence: dict[str, Any]  # {'type': ..., numbers}
    sampling: dict[str, Any]
    seed: int
    gold: str | None = None
    statistics: dict[str, list[Any]] = dataclasses.field(default_factory=dict)
    models: dict[str, str] = dataclasses.field(default_factory=dict)  # role -> content hash
    experiment: str = ''  # the experiment's hash
    policy: str = ''
    terms: str = ''
    customer: str = ''
    versions: dict[str, str] = dataclasses.field(default_factory=dict)
    format_version: int = 1


def check_range(
    name: str, value: Any, low: float = -math.inf, high: float = math.inf, open_low: bool = False
) -> None:
    """Raises ValueError unless low <= value <= high (low < value with `open_low`). Refuses nan and infinities."""
    bracket = '(' if open_low else '['
    try:
        inside = math.isfinite(value) and low <= value <= high and not (open_low and value == low)
    except TypeError:
        inside = False
    if not inside:
        raise ValueError(f'{name} = {value!r} is not allowed; it must be finite and in {bracket}{low:g}, {high:g}]')


def check_count(name: str, value: Any, least: int = 1) -> None:
    """Raises ValueError unless the value is a whole number of at least `least`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f'{name} = {value!r} is not allowed; it must be a whole number of at least {least}')


NAMING = 'without "/" or "\\", printable, of at most 100 bytes, and not beginning with "."'


def is_name(name: str) -> bool:
    """Whether a name can be part of a request id and of a file's name, as NAMING says it."""
    plain = name.isprintable() and not name.startswith('.') and not set(name) & set('/\\')
    return plain and 0 < len(name.encode(errors='replace')) <= 100


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f'{name} = {value!r} is unknown; it must be one of {choices}{hint(value, choices)}')


class Dataset(Protocol):
    """A named source of prompts."""

    @property
    def name(self) -> str: ...

    def prompts(self, split: str) -> list[Prompt]:
        """Every prompt of `split` in a stable order. Raises ValueError naming file and line on bad input."""
        ...

    def grade(self, text: str, gold: str) -> bool:
        """Whether the final answer stated in `text` equals `gold`."""
        ...
