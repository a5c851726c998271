"""The menu of rewriters: how a finished trace is said otherwise, so that it teaches less."""

from adx.rewriters.evolved import Evolved
from adx.rewriters.gradient import Gradient
from adx.rewriters.instructed import INSTRUCTIONS, Instructed
from adx.rewriters.marked import Marked
from adx.rewriters.matched import Matched
from adx.rewriters.rendered import Rendered
from adx.rewriters.selected import Selected

__all__ = ['INSTRUCTIONS', 'MENU']

MENU: dict[str, type] = {
    'instructed': Instructed,
    'evolved': Evolved,
    'rendered': Rendered,
    'gradient': Gradient,
    'selected': Selected,
    'marked': Marked,
    'matched': Matched,
}
