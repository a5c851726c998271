"""The menu of detectors: whether a suspect model was trained on text that carries a mark."""

from adx.detectors.trigger import Trigger

__all__ = ['MENU']

MENU: dict[str, type] = {'trigger': Trigger}
