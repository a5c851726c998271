"""What students are taught: an attack's lessons as one family reads them."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax

from adx import attacks
from adx.attackers import Attackers
from adx.attacks import Attack
from adx.errors import ConfigError, InputError
from adx.families import Family, Lab
from adx.lesson_encoding import Encoded, encode
from adx.lessons import Lesson, check_apart, tallied
from adx.supervision import Supervision, supervise

OWN = 'own'  # in place of an arm: what the attacker has without one

Prepare = Callable[[Attack, str], attacks.Prepared | None]  # (attack, arm or OWN) -> its lessons, None without any


def check_together(chosen: Sequence[Attack]) -> None:
    """Raises ConfigError, where this is one program of several processes, for an attack that wants a model beside its
    students: each process would have to ask it in step with the others.
    """
    if jax.process_count() == 1:
        return
    for attack in chosen:
        beside = [name for name in attack.needs if name in ('query', *attacks.OF_OWN_MODEL)]
        recorded = attack.loss == 'soft' and 'candidates' not in dict(attack.arguments)
        asks = beside or ([] if attack.loss == 'hard' or recorded else [f'labels for the loss {attack.loss!r}'])
        if asks:
            raise ConfigError(
                f'attack {attack.name!r} asks a model beside its students ({", ".join(asks)}), and one program across '
                'hosts does not; name the others with --attacks, and distil this one without --distributed'
            )


@dataclasses.dataclass(frozen=True)
class Course:
    """What the students of one arm are taught."""

    prepared: attacks.Prepared
    encoded: Encoded
    supervision: Supervision

    @property
    def lessons(self) -> dict[str, int]:
        """What became of them, as Outcome has it."""
        found = tallied([*self.prepared.tallies, self.encoded.tally])
        return found | ({'retokenised': self.encoded.retokenised} if self.encoded.retokenised else {})


def prepare(
    lab: Lab, attackers: Attackers, arms: Mapping[str, Sequence[Lesson]], attack: Attack, name: str
) -> attacks.Prepared | None:
    """What an attack makes of an arm's traces, or of its own resources alone; None where there are no lessons."""
    resources = attackers.resources('' if name == OWN else name, arms[lab.study.clean])
    own = name == OWN
    with _told(attack, name):
        prepared = attack.own_only(resources.prompts, resources) if own else attack.prepare(arms[name], resources)
        if prepared is None or not prepared.lessons:
            return None
        check_apart(prepared.lessons, itertools.chain(*lab.prompts.values()))
    return prepared


def make_course(
    lab: Lab, family: Family, attackers: Attackers, attack: Attack, name: str, prepared: attacks.Prepared
) -> Course:
    """Of an arm, or OWN."""
    student, length = family.student, lab.study.recipe.length
    asked = '' if name == OWN else name
    with _told(attack, name):
        encoded = encode(prepared.lessons, family.tokenizer, student.prompting, length, lab.teacher)
        return Course(prepared, encoded, supervise(attackers, family, attack, asked, encoded))


@contextlib.contextmanager
def _told(attack: Attack, name: str) -> Iterator[None]:
    """What cannot be made of traces is an error that says by which attack and of whose."""
    try:
        yield
    except (InputError, ValueError) as error:
        raise InputError(f'attack {attack.name!r} on the traces of {name!r}: {error}') from error
