"""The licence policy: which customer is served under which terms."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
from etils import epath

from adx.errors import InputError, StorageError, malformed
from adx.fields import hint
from adx.journal import read_object
from adx.types import Defence, Trace, check_choice

LICENCES = ('distillation', 'usage', 'research')

DeriveKey = Callable[[str], int]  # a key id to 64 bits


@dataclasses.dataclass(frozen=True)
class Customer:
    """Who asks, by the name that prompts carry.

    key_id: whose key a rule with a field `key` gets; '' leaves the rule its own. No rule that ships has one: it is for
    rules of your own. Marks by rewriting take their customer from `Marked`.
    """

    name: str
    licence: str
    key_id: str = ''


@dataclasses.dataclass(frozen=True)
class Terms:
    """How the customers of a licence are served: under `defence`, or by the plain teacher where it is None."""

    licence: str
    defence: Defence | None


@dataclasses.dataclass(frozen=True)
class Policy:
    """Customer -> licence -> terms. default: the licence of customers that are not listed; '' refuses them."""

    customers: tuple[Customer, ...]
    terms: tuple[Terms, ...]
    default: str = ''

    def check(self) -> None:
        """Raises ValueError for a name or a licence that is there twice, unknown or without terms, and bad numbers."""
        licences = [terms.licence for terms in self.terms]
        for what, names in (('customers', [customer.name for customer in self.customers]), ('terms', licences)):
            twice = [name for i, name in enumerate(names) if name in names[:i]]
            if twice:
                raise ValueError(f'policy.{what} has {twice[0]!r} twice; give each its own entry')
        for customer in self.customers:
            if not customer.name:
                raise ValueError("policy.customers has one named ''; name it, unlisted customers follow policy.default")
            self._check_licence(f'policy.customers.{customer.name}.licence', customer.licence)
        if self.default:
            self._check_licence('policy.default', self.default)
        for terms in self.terms:
            check_choice('policy.terms.licence', terms.licence, LICENCES)
            if terms.defence is not None:
                _check_defence(terms.licence, terms.defence)
        self._check_structure()
        self._check_keys()

    def _check_licence(self, name: str, licence: str) -> None:
        check_choice(name, licence, LICENCES)
        licences = [terms.licence for terms in self.terms]
        if licence not in licences:
            raise ValueError(f'{name} = {licence!r} has no terms; policy.terms has {licences}, add it')

    def _check_structure(self) -> None:
        """Rows of all licences share one program, so their rules differ in numbers only."""
        defended = [terms for terms in self.terms if terms.defence is not None]
        for terms in defended[1:]:
            if structure(terms.defence) != structure(defended[0].defence):
                raise ValueError(
                    f'policy.terms of {defended[0].licence!r} and {terms.licence!r} have the rules '
                    f'{defended[0].defence} and {terms.defence}; they may differ in numbers only'
                )

    def _check_keys(self) -> None:
        """A key marks only the traces of a rule that has one."""
        rules = {terms.licence: terms.defence for terms in self.terms}
        for customer in self.customers:
            rule = rules[customer.licence]
            if customer.key_id and rule is None:
                raise ValueError(
                    f'policy.customers.{customer.name}.key_id = {customer.key_id!r} names a key and the licence '
                    f'{customer.licence!r} has no rule that could use it; drop it'
                )
            if customer.key_id and not is_keyed(rule):
                raise ValueError(
                    f'policy.customers.{customer.name}.key_id = {customer.key_id!r} names a key and the rule '
                    f'{rule} has no field `key`; drop it or take a keyed rule'
                )

    def serve(self, customer: str) -> tuple[Customer, Terms]:
        """The customer's entry and the terms of its licence. Raises InputError for one that is refused."""
        named = {known.name: known for known in self.customers}
        entry = named.get(customer, Customer(customer, self.default))
        if not entry.licence:
            raise InputError(
                f'customer {customer!r} is not in policy.customers and policy.default is empty; list it or set the '
                f'default{hint(customer, named)}'
            )
        return entry, next(terms for terms in self.terms if terms.licence == entry.licence)


def check_policy(policy: Any, rules: Mapping[str, Defence]) -> None:
    """Raises ValueError for a policy that cannot serve arms with these rules. None is fine."""
    if policy is None:
        return
    if not isinstance(policy, Policy):
        raise ValueError(f'policy = {policy!r} is not allowed; give a Policy or None')
    policy.check()
    defended = [terms for terms in policy.terms if terms.defence is not None]
    for name, rule in rules.items():
        if defended and structure(rule) != structure(defended[0].defence):
            raise ValueError(
                f'arm {name!r} has the rule {rule} and policy.terms of {defended[0].licence!r} '
                f'{defended[0].defence}; with a policy they may differ in numbers only'
            )


def structure(defence: Any) -> Any:
    """What rows of one program share: everything about a rule but its numbers."""
    return jax.tree.structure(defence)


def spares(directory: epath.Path) -> Callable[[Trace], bool]:
    """Tells whether a trace was served under terms without a defence; it is not to be protected afterwards either.

    directory: of the policies by their hashes, as a workdir keeps them. Raises StorageError where one is not there.
    """

    @functools.cache
    def licences(policy: str) -> frozenset[str]:
        path = directory / f'{policy}.json'
        kept = read_object(path, ('policy',), StorageError, 'restore it')['policy']
        with malformed(f'{path} is no policy', 'restore it'):
            return frozenset(terms['licence'] for terms in kept['terms'] if terms['defence'] is None)

    return lambda trace: bool(trace.terms) and trace.terms in licences(trace.policy)


def _check_defence(licence: str, defence: Defence) -> None:
    if not isinstance(defence, Defence):
        raise ValueError(f'policy.terms of {licence!r}: {defence!r} is no defence; give a rule or None')
    try:
        defence.check()
    except ValueError as error:
        raise ValueError(f'policy.terms of {licence!r}: {error}') from error


def is_keyed(defence: Any) -> bool:
    """Whether a number of the rule, at any depth, is named `key`."""
    paths = (path for path, _ in jax.tree_util.tree_leaves_with_path(defence))
    return any(getattr(step, 'name', '') == 'key' for path in paths for step in path)


def with_key(defence: Any, key: int) -> Any:
    """The rule with every field `key` in it, at any depth, set to these 64 bits.

    As four 16-bit words, the highest first: the numbers of a rule travel as float32, which holds such words exactly.
    """
    if isinstance(defence, tuple):
        return tuple(with_key(rule, key) for rule in defence)
    if not dataclasses.is_dataclass(defence) or isinstance(defence, type):
        return defence
    words = tuple(float(key >> shift & 0xFFFF) for shift in (48, 32, 16, 0))
    fields = {f.name: getattr(defence, f.name) for f in dataclasses.fields(defence)}
    return dataclasses.replace(
        defence, **{name: words if name == 'key' else with_key(value, key) for name, value in fields.items()}
    )
