"""Sweeps: one arm per value of its fields."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

from adx.errors import ConfigError
from adx.fields import find, literals, set_field

Axis = tuple[str, list[list[str]], list[Any]]  # what errors start with, the paths below the arm, the values


def swept(arms: tuple[Any, ...], assignments: list[str], has_policy: bool = False) -> tuple[tuple[Any, ...], ...]:
    """For each arm those that take its place, one per value that an assignment gives it; see `experiment.sweep`.

    has_policy: the numbers of rules are not the arms' to say. Raises ConfigError for an assignment that names no field.
    """
    grids: dict[int, list[Axis]] = {}
    for assignment in assignments:
        path, _, text = assignment.partition('=')
        root, name, below = [*path.split('.', 2), '', ''][:3]
        fields = [field.split('.') for field in below.split('+')]
        if root != 'arms' or any(keys[0] not in ('defence', 'sampling') for keys in fields) or not text:
            raise ConfigError(
                f'--sweep {assignment!r} is not allowed; write --sweep arms.<arm>.<defence or sampling>.<field>'
                f'=value,value with an arm of {[arm.name for arm in arms]}; +<defence or sampling>.<field> behind a '
                'field gives another one the same value'
            )
        if has_policy and any(keys[0] == 'defence' for keys in fields):
            raise ConfigError(f'--sweep {path}: the policy gives the numbers of rules; sweep sampling or set its terms')
        axis = (f'--sweep {path}', fields, literals(text))
        grids.setdefault(find(arms, name, f'--sweep {path}'), []).append(axis)
    return tuple(tuple(_grid(arm, grids.get(i, []))) for i, arm in enumerate(arms))


def follow(selections: tuple[Any, ...], arms: tuple[Any, ...], grids: tuple[tuple[Any, ...], ...]) -> tuple[Any, ...]:
    """The selections made of every arm that took the place of theirs; one of no arm stays, to be refused."""
    places = {arm.name: [new.name for new in grid] for arm, grid in zip(arms, grids, strict=True)}
    return tuple(
        dataclasses.replace(selection, name=selection.name + name.removeprefix(selection.arm), arm=name)
        for selection in selections
        for name in places.get(selection.arm, [selection.arm])
    )


def _grid(arm: Any, axes: list[Axis]) -> list[Any]:
    """The arm at every point of its grid, named after it; itself where the grid has no axis."""
    made = []
    for point in itertools.product(*(values for _, _, values in axes)):
        new = arm
        for (path, fields, _), value in zip(axes, point, strict=True):
            for keys in fields:
                new = set_field(new, keys, value, path)
        settings = ','.join(f'{fields[0][-1]}={value}' for (_, fields, _), value in zip(axes, point, strict=True))
        made.append(dataclasses.replace(new, name=f'{arm.name}.{settings}' if axes else arm.name))
    return made
