"""Dataclasses that jitted functions take: fields are leaves, static fields are structure.

`flax.struct.dataclass` does the same and is not used: with jax up to 0.10 the tree structures of two classes that
`jax.tree_util.register_dataclass` registered compare equal when their fields do. `jax.jit` finds programs by structure,
so where two hashes meet in its cache one defence runs the program of another. It has happened.
"""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar, dataclass_transform

import jax

T = TypeVar('T')


def static(**kwargs: Any) -> Any:
    """A field that is part of the structure: hashable, and another value is another program."""
    return dataclasses.field(metadata={'static': True}, **kwargs)


@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field, static))
def dataclass(cls: type[T]) -> type[T]:
    """A frozen dataclass that is a pytree. Its `__post_init__` would run again with tracers: validate elsewhere."""
    dataclasses.dataclass(frozen=True)(cls)
    fields = dataclasses.fields(cls)  # type: ignore[arg-type]
    structure = tuple(field.name for field in fields if field.metadata.get('static'))
    leaves = tuple(field.name for field in fields if field.name not in structure)

    def flatten(x: Any) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        return tuple(getattr(x, name) for name in leaves), tuple(getattr(x, name) for name in structure)

    def flatten_with_keys(x: Any) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        values, settings = flatten(x)
        return tuple(zip(map(jax.tree_util.GetAttrKey, leaves), values, strict=True)), settings

    def unflatten(settings: tuple[Any, ...], values: Any) -> Any:
        return cls(**dict(zip(structure, settings, strict=True)), **dict(zip(leaves, values, strict=True)))

    jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)
    return cls
