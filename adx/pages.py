"""The templates of HTML pages: everything is escaped, a missing name is an error."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from adx.spans import visible


@functools.cache
def template(name: str, *filters: Callable[..., str]) -> Any:
    """A file of adx/templates, to be rendered; its filters are `visible` and these functions, by their names."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader('adx'), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters.update({one.__name__: one for one in (visible, *filters)})
    return environment.get_template(name)
