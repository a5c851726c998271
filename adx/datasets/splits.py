"""The five splits, by a hash over normalised text, without near-duplicates across them.

    holdout     proxies and the antidistillation gradient     10 %
    tune        every choice of the defender                  10 %
    attack_val  every choice of the attacker                  10 %
    train       traces                                        70 %
    test        official test rows, never reassigned

A source without official test rows may ask for a hashed `test` of one more tenth; `train` then keeps 60 % and
no other row moves. A row's split depends on its text alone.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable

from adx import texts
from adx.datasets.rows import Row, Source
from adx.errors import ConfigError, InputError
from adx.texts import NGRAM, canonical, normalise

SPLITS = ('holdout', 'train', 'tune', 'attack_val', 'test')

_SALT = 'adx-splits-1:'  # a new number is a new assignment of every row
_TENTHS = ('holdout', 'tune', 'attack_val', 'test', *('train',) * 6)
# Of two near-duplicates the one in the earlier split stays: what measures outranks what is trained on.
_RANK = ('test', 'attack_val', 'tune', 'holdout', 'train')


@dataclasses.dataclass(frozen=True)
class Splits:
    """rows: split -> its rows, in the order of their hashes. dropped: near-duplicates each split lost."""

    rows: dict[str, tuple[Row, ...]]
    dropped: dict[str, int]

    def pick(self, split: str, name: str) -> tuple[Row, ...]:
        """The rows of a split of dataset `name`; ConfigError if it is unknown, InputError if it is empty."""
        if split not in self.rows:
            raise ConfigError(f'{name} has no split {split!r}; it has {list(self.rows)}')
        if not self.rows[split]:
            full = [other for other, rows in self.rows.items() if rows]
            raise InputError(f'{name}: split {split!r} has no rows; use one of {full} or give it more data')
        return self.rows[split]


def _digest(text: str) -> bytes:
    return hashlib.sha256((_SALT + canonical(text)).encode()).digest()


def assign(text: str, hashed_test: bool = False) -> str:
    """The split of a text: 'test' only where `hashed_test`, because official test sets stay apart."""
    split = _TENTHS[int.from_bytes(_digest(text)[:8]) * 10 >> 64]
    return 'train' if split == 'test' and not hashed_test else split


def ngrams(text: str) -> set[int]:
    """Hashes of the 13-grams of the normalised words; a shorter text is one gram.

    A script without spaces has runs for words, so there only equal passages of several sentences are found.
    """
    words = normalise(text).split() or [text]
    return set(map(hash, texts.ngrams(words, NGRAM)))


def split_rows(pool: Iterable[Row], test: Iterable[Row] = (), hashed_test: bool = False) -> Splits:
    """Assigns `pool` by hash, keeps `test` whole, and drops and counts near-duplicates across splits.

    A near-duplicate shares a 13-gram with a row that stays in a split of higher rank: test, attack_val, tune,
    holdout, train. Duplicates within a split stay. The result does not depend on the order of either input.
    """
    groups: dict[str, list[Row]] = {split: [] for split in SPLITS}
    for row in pool:
        groups[assign(row.text, hashed_test)].append(row)
    groups['test'].extend(test)
    kept: dict[str, tuple[Row, ...]] = {}
    dropped = dict.fromkeys(SPLITS, 0)
    seen: set[int] = set()
    for split in _RANK:
        grams = [(row, ngrams(row.text)) for row in groups[split]]
        fresh = [(row, own) for row, own in grams if seen.isdisjoint(own)]
        seen.update(*(own for _, own in fresh))
        dropped[split] = len(grams) - len(fresh)
        kept[split] = tuple(sorted((row for row, _ in fresh), key=lambda row: (_digest(row.text), row.id)))
    return Splits({split: kept[split] for split in SPLITS}, dropped)


def split_source(source: Source, hashed_test: bool = False) -> Splits:
    return split_rows(source.pool.rows, source.test.rows, hashed_test)
