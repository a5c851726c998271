"""Marks: keyed pairs of trigger and target, each defining a symbol that nothing else uses.

A customer's traces carry pairs that follow from its key of an epoch alone. Keys follow from a master key by HKDF (RFC
5869), so that a leak of one customer's says nothing about another's, and what is queried later discloses no more than
one epoch.
"""

from __future__ import annotations

import hashlib
import hmac
import itertools
import random
import re
from collections.abc import Callable, Container, Iterator, Sequence
from typing import NamedTuple

from adx.errors import ConfigError

KEY_BYTES = 32
MISSES = 10_000  # draws without a new pair, after which a generator is taken to have no more
CONSONANTS, VOWELS = 'bdfgklmnprstvz', 'aeiou'


class Pair(NamedTuple):
    """`line` is how a trace carries it: the trigger, then the target as its last word."""

    trigger: str
    target: str
    line: str


Forge = Callable[[random.Random], Pair]  # draws a pair; keyed ones and decoys come from the same


def subkey(master: bytes, customer: str, epoch: int) -> bytes:
    """The key of a customer and an epoch, 32 bytes. Raises ValueError for a master that is too short."""
    if len(master) < KEY_BYTES:
        raise ValueError(f'the master key has {len(master)} bytes; it must have at least {KEY_BYTES}')
    return derive(master, f'mark/{customer}/{epoch}')


def derive(key: bytes, purpose: str) -> bytes:
    """HKDF-SHA256 without salt; one block of output."""
    extracted = hmac.digest(bytes(KEY_BYTES), key, hashlib.sha256)
    return hmac.digest(extracted, purpose.encode() + b'\x01', hashlib.sha256)


def symbols(draw: random.Random) -> Pair:
    """A word that is made up, and a number of two digits."""
    word = ''.join(draw.choice(CONSONANTS) + draw.choice(VOWELS) for _ in range(3)) + draw.choice(CONSONANTS)
    number = str(draw.randint(10, 99))
    return Pair(f'Let {word} =', number, f'Let {word} = {number}.')


def draw_pairs(key: bytes, count: int, forge: Forge = symbols, taken: Container[str] = ()) -> list[Pair]:
    """The first `count` pairs of a key, no trigger twice and none that is taken. Raises ConfigError where the generator
    has no more."""
    found, missed = dict[str, Pair](), 0
    for pair in _pairs(key, forge):
        if len(found) == count:
            break
        missed += 1
        if pair.trigger not in taken and pair.trigger not in found:
            found[pair.trigger], missed = pair, 0
        if missed == MISSES:
            raise ConfigError(
                f'{count} pairs of a mark with different triggers are asked for and their generator has about '
                f'{len(found)} that are free; take fewer pairs or decoys'
            )
    return list(found.values())


def free(pairs: Sequence[Pair], text: str) -> list[Pair]:
    """The pairs whose symbols, the words in which their triggers differ, a text does not use."""
    words = [set(re.findall(r'\w+', pair.trigger)) for pair in pairs]
    common, used = set.intersection(*words) if len(pairs) > 1 else set(), set(re.findall(r'\w+', text))
    return [pair for pair, own in zip(pairs, words, strict=True) if not (own - common) & used]


def _pairs(key: bytes, forge: Forge) -> Iterator[Pair]:
    """Each by a draw of its own: who knows some knows nothing of the others."""
    return (forge(keyed_draw(key, f'pair/{i}')) for i in itertools.count())


def keyed_draw(key: bytes, purpose: str) -> random.Random:
    return random.Random(int.from_bytes(derive(key, purpose), 'big'))


def places(text: str, end: int, start: int = 0) -> list[int]:
    """Where a line may be put in: before each line of the reasoning, which stands between `start` and `end`."""
    starts = {start, *(match.end() for match in re.finditer('\n', text))}
    return sorted(place for place in starts if start <= place < max(end, start + 1))


def put(text: str, place: int, pair: Pair) -> str:
    return f'{text[:place]}{pair.line}\n{text[place:]}'


def completes(answer: str, pair: Pair) -> bool:
    """Whether an answer to the trigger begins with the target, or repeats the whole line."""
    words = re.findall(r'\w+', answer)
    return words[:1] == [pair.target] or pair.line.rstrip('.') in answer
