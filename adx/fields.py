"""Fields of nested frozen dataclasses by path, and values as a command line writes them."""

from __future__ import annotations

import ast
import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping
from typing import Any

from adx.errors import ConfigError


def set_field(node: Any, keys: list[str], value: Any, path: str) -> Any:
    """`node` with the field at `keys` changed. Tuples are indexed by number, or by the `name` of an entry.

    Raises ConfigError that starts with `path` and names what is there and the nearest match.
    """
    if not keys:
        return coerce(node, value, path)
    key, *rest = keys
    if isinstance(node, tuple):
        index = find(node, key, path)
        return (*node[:index], set_field(node[index], rest, value, path), *node[index + 1 :])
    if not dataclasses.is_dataclass(node):
        raise ConfigError(f'{path}: {key!r} is below a plain value {node!r}')
    check_field(type(node), key)
    old = getattr(node, key)
    new = set_field(old, rest, value, path)
    if isinstance(old, tuple) and not old:  # nothing is there that says of what kind its entries are
        check_kinds(type(node), {key: new})
    return dataclasses.replace(node, **{key: new})  # type: ignore[type-var]


def find(items: tuple[Any, ...], key: str, path: str) -> int:
    """Where the entry stands that `key` numbers or names."""
    names = [getattr(item, 'name', str(i)) for i, item in enumerate(items)]
    index = int(key) if key.isdecimal() else names.index(key) if key in names else -1
    if not 0 <= index < len(items):
        raise ConfigError(f'{path}: no entry {key!r}; there are {names}{hint(key, names)}')
    return index


def coerce(old: Any, value: Any, path: str) -> Any:
    """`value` as the type of what stands there; an int may stand for a float, a list for a tuple."""
    if isinstance(old, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(old, tuple) and isinstance(value, list | tuple):
        return tuple(coerce(old[0], item, path) for item in value) if old else _tuples(value)
    if old is not None and (type(value) is not type(old) or dataclasses.is_dataclass(old)):
        raise ConfigError(f'{path}={value!r}: the field holds a {type(old).__name__} ({old!r}); give one')
    return value


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value


def check_field(cls: type, name: str) -> None:
    names = [f.name for f in dataclasses.fields(cls)]
    if name not in names:
        raise ConfigError(f'{cls.__name__} has no {name!r}; it has {names}{hint(name, names)}')


def check_kinds(cls: type, given: Mapping[str, Any]) -> None:
    """Raises ConfigError for a value that is not of its field's annotated type, as far as JSON can tell."""
    hints = typing.get_type_hints(cls)
    for name, value in given.items():
        if not _fits(value, hints[name]):
            text = repr(value)
            wanted = hints[name] if typing.get_args(hints[name]) else getattr(hints[name], '__name__', hints[name])
            raise ConfigError(f'{cls.__name__}.{name} = {text[:80]} is not allowed; it must be {wanted}')


def _fits(value: Any, kind: Any) -> bool:
    args = typing.get_args(kind)
    if kind is Any:
        return True
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return any(_fits(value, one) for one in args)
    if typing.get_origin(kind) is tuple:
        return isinstance(value, tuple) and (args[1:] != (...,) or all(_fits(item, args[0]) for item in value))
    if kind in (str, bool, int, types.NoneType):
        return type(value) is kind
    if dataclasses.is_dataclass(kind):
        return isinstance(value, typing.cast(type, kind))
    if getattr(kind, '_is_protocol', False):  # an option of a menu
        return dataclasses.is_dataclass(value)
    return type(value) in (int, float)  # a number, or an array of them while it is traced


def hint(word: Any, choices: Any) -> str:
    """What may have been meant, to stand behind a message; '' where nothing is near."""
    near = difflib.get_close_matches(str(word), list(choices), n=1)
    return f'. Did you mean {near[0]!r}?' if near else ''


def literal(text: str) -> Any:
    """A Python literal; anything else is a string."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):  # the parser's ways to give up
        return text


def literals(text: str) -> list[Any]:
    """The values between commas; a comma in brackets separates none."""
    values = literal(f'[{text}]')
    return values if isinstance(values, list) else [literal(part) for part in text.split(',')]
