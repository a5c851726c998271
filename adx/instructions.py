"""Instructions that a search has tried, with their scores, in the workdir.

    private/evolved/state.json   what is known, written after every change: see State
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from adx import files
from adx.errors import InputError, StorageError, malformed
from adx.journal import content_to_json, diff, read_content
from adx.storage import Workdir

ANEW = 'delete it to begin anew'


class State:
    """What a search knows, on disk after every change.

    Every instruction that was scored, those proposed for a round, what rewriting has made so far of the sample for one
    that is not scored yet, and what proxies are compared with.

    about: what the search is. Raises InputError where the workdir holds another, StorageError for a damaged file.
    """

    def __init__(self, workdir: Workdir, about: dict[str, Any]):
        self.place = _place(workdir)
        self.content: dict[str, Any] = {'about': about, 'scored': [], 'proposed': {}, 'rewritten': {}, 'levels': {}}
        if files.exists(self.place):
            self.content = _read(self.place)
            if differences := diff(self.content['about'], about):
                raise InputError(
                    f'{self.place} is of another search (theirs != ours): {"; ".join(differences)}; {ANEW}, '
                    'or undo the change'
                )

    @property
    def scores(self) -> dict[str, float]:
        return _scores(self.content)

    @property
    def ranked(self) -> list[tuple[str, float]]:
        return sorted(self.scores.items(), key=lambda pair: pair[1])

    @property
    def helpful(self) -> list[tuple[str, float]]:
        return _helpful(self.content)

    @property
    def best_turn(self) -> int:
        best = max(self.content['scored'], key=lambda one: one['score'], default={'turn': 0})
        return best['turn']

    @property
    def proposed(self) -> dict[int, list[str]]:
        return {int(turn): new for turn, new in self.content['proposed'].items()}

    def propose(self, turn: int, instructions: Sequence[str]) -> None:
        self.content['proposed'][str(turn)] = list(instructions)
        self._save()

    def rewritten(self, instruction: str) -> list[dict[str, Any]]:
        """The records of the sample's first traces as this instruction has them, as far as they were made."""
        return list(self.content['rewritten'].get(instruction, ()))

    def append(self, instruction: str, records: Sequence[dict[str, Any]]) -> None:
        self.content['rewritten'] = {instruction: [*self.rewritten(instruction), *records]}
        self._save()

    def level(self, name: str, measure: Callable[[], float]) -> float:
        """What `measure` gave when it was first asked for that name."""
        if name not in self.content['levels']:
            self.content['levels'][name] = measure()
            self._save()
        return float(self.content['levels'][name])

    def add(self, instruction: str, turn: int, score: float, counts: Mapping[str, Any]) -> None:
        record = {'instruction': instruction, 'turn': turn, 'score': score, 'counts': dict(counts)}
        self.content['scored'].append(record)
        self.content['rewritten'].pop(instruction, None)
        self._save()

    def _save(self) -> None:
        with files.os_errors(StorageError, f'{self.place} was not written'):
            files.write_private(self.place, content_to_json('search', self.content))


def forget(workdir: Workdir) -> bool:
    """Removes texts of traces, and what was measured on them, from a search that is on its way; whether there were
    some. Scores stay.
    """
    place = _place(workdir)
    if not files.exists(place) or not (content := _read(place))['rewritten']:
        return False
    files.write_private(place, content_to_json('search', content | {'rewritten': {}, 'levels': {}}))
    return True


def best(workdir: Workdir) -> str:
    """The instruction of the highest score. Raises InputError where none was tried, or none beats doing nothing."""
    place, run = _place(workdir), 'run python -m tools.evolve on this workdir'
    if not files.exists(place):
        raise InputError(f'{place} is not there, and a rewrite is told by what stands in it; {run}')
    if not (found := _helpful(_read(place))):
        raise InputError(f'no instruction in {place} beats doing nothing; leave the rewrite out, or {run} again')
    return found[-1][0]


def _scores(content: Mapping[str, Any]) -> dict[str, float]:
    return {one['instruction']: one['score'] for one in content['scored']}


def _helpful(content: Mapping[str, Any]) -> list[tuple[str, float]]:
    """Those that beat doing nothing, the best last."""
    return sorted((pair for pair in _scores(content).items() if pair[1] > 0), key=lambda pair: pair[1])


def _place(workdir: Workdir) -> Any:
    return workdir.private / 'evolved' / 'state.json'


def _read(place: Any) -> dict[str, Any]:
    earlier: dict[str, Any] = {'rewritten': {}, 'levels': {}}  # which earlier versions did not write
    content = earlier | read_content(place, 'search', dict, StorageError, ANEW)
    with malformed(f'{place} is damaged', ANEW, StorageError):
        _check(content)
    return content


def _check(content: dict[str, Any]) -> None:
    """Raises ValueError, TypeError or LookupError for what no search has written."""
    if not isinstance(content['about'], dict) or not isinstance(content['scored'], list):
        raise TypeError('about is no object or scored no list')
    for one in content['scored']:
        if [type(one[name]) for name in ('instruction', 'turn')] != [str, int] or isinstance(one['score'], bool):
            raise TypeError(f'{one!r:.80} has no instruction, turn and score')
        _ = float(one['score'])
    for records in content['rewritten'].values():
        if not all(isinstance(one['text'], str) and isinstance(one['refusals'], list) for one in records):
            raise TypeError('rewritten holds what is no record of a rewrite')
    for name, level in content['levels'].items():
        if isinstance(level, bool) or not isinstance(level, int | float):
            raise TypeError(f'level {name!r} is no number')
    for turn, new in content['proposed'].items():
        if int(turn) < 1 or not isinstance(new, list) or not all(isinstance(one, str) for one in new):
            raise TypeError(f'proposed {int(turn)} is no list of instructions')
