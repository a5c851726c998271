"""adx's own checkpoint directories, local or on a store: a config beside Orbax arrays.

    directory/adx.json     written last: a directory without it is not a checkpoint
    directory/params/      Orbax; flat names such as 'blocks.0.attention.q'
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
from etils import epath

from adx import files, journal
from adx.errors import AdxError, InputError, StorageError, malformed
from adx.models.rope import Rope
from adx.models.transformer import Params, TransformerConfig

MANIFEST, ARRAYS = 'adx.json', 'params'
# Of a store that fails or refuses, as tensorstore begins its ValueErrors after up to 32 retries of a request.
OUTAGES = ('UNAVAILABLE', 'DEADLINE_EXCEEDED', 'RESOURCE_EXHAUSTED', 'ABORTED', 'PERMISSION_DENIED', 'UNAUTHENTICATED')


def write_manifest(directory: epath.Path, config: TransformerConfig) -> None:
    """Makes the directory a checkpoint, once all else is in it."""
    manifest = {'format_version': journal.FORMAT_VERSION, 'config': dataclasses.asdict(config)}
    files.write_whole(directory / MANIFEST, f'{json.dumps(manifest, indent=2)}\n'.encode())


def write_arrays(directory: epath.Path, params: Params) -> None:
    """Saves the arrays from all processes, in place of those that are there. Raises StorageError."""
    import orbax.checkpoint as ocp

    with _writing(directory), ocp.StandardCheckpointer() as writer:
        writer.save(directory / ARRAYS, params, force=True)


@contextlib.contextmanager
def _writing(directory: epath.Path) -> Iterator[None]:
    """Turns what a disk or a store refuses into StorageError. Of several processes one may fail because another died,
    which is told apart by what is raised (processes.ending_together): nothing is changed there.
    """
    if jax.process_count() > 1:
        yield
        return
    fix = 'what was saved before is safe: free some space or check the storage, and run the same command again'
    with _explained(directory, StorageError, 'was not written', fix):
        yield


@contextlib.contextmanager
def _explained(directory: epath.Path, kind: type[AdxError], what: str, fix: str) -> Iterator[None]:
    """Turns whatever Orbax and TensorStore raise, bare Exceptions among it, into one line.

    An outage is no damage: arrays that it interrupted are whole or not taken for a checkpoint.
    """
    try:
        yield
    except AdxError:
        raise
    except Exception as error:
        if isinstance(error, ValueError) and str(error).startswith(OUTAGES):
            text = str(error).split('[', 1)[0].strip()
            raise StorageError(
                f'{directory}: {text}; what was finished is safe, check the storage and run the same command again'
            ) from error
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise kind(f'{directory / ARRAYS} {what} ({reason[:200]}); {fix}') from error


class Saver:
    """Saves arrays in the background, one set at a time. All processes make the same calls."""

    def __init__(self) -> None:
        import orbax.checkpoint  # seconds, which a process that was told to stop does not have

        self._orbax: Any = orbax.checkpoint
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None

    def begin(self, directory: epath.Path, params: Params, whole: Callable[[], None]) -> None:
        """Returns when the arrays may change. `whole` is called once all are durable, by a thread of process 0."""
        self.close()
        checkpointer = self._orbax.StandardCheckpointer()
        with _writing(directory):
            checkpointer.save(directory / ARRAYS, params, force=True)
        self._thread = threading.Thread(target=self._finish, args=(directory, checkpointer, whole))
        self._thread.start()

    def _finish(self, directory: epath.Path, checkpointer: Any, whole: Callable[[], None]) -> None:
        """Orbax's own callback comes before the arrays have their name, too early for a manifest."""
        try:
            with _writing(directory):
                checkpointer.close()
            if jax.process_index() == 0:
                whole()
        except BaseException as error:
            self._failure = error

    def close(self) -> None:
        """Waits until what was begun is whole, on process 0, and durable; raises what it failed with."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure


def read_config(directory: epath.Path) -> TransformerConfig:
    """The config in the manifest; InputError when this version of adx cannot read it."""
    manifest = journal.read_object(directory / MANIFEST, ('config',), InputError, 'save the model again')
    try:
        manifest = journal.upgrade(manifest)
    except ValueError as error:
        raise InputError(f'{directory}: {error}') from error
    with malformed(f'{directory / MANIFEST} is damaged', 'save the model again'):
        return _config(manifest['config'])


def _config(fields: dict[str, Any]) -> TransformerConfig:
    local = fields['local_rope']
    return TransformerConfig(
        **fields
        | {
            'rope': Rope(**fields['rope']),
            'local_rope': None if local is None else Rope(**local),
            'local_pattern': tuple(fields['local_pattern']),
        }
    )


def read_shapes(directory: epath.Path) -> dict[str, tuple[int, ...]]:
    """Name -> shape of the arrays; InputError when they are not whole."""
    import orbax.checkpoint as ocp

    with _damaged(directory), ocp.StandardCheckpointer() as checkpointer:
        metadata: Any = checkpointer.metadata(directory / ARRAYS)
        return {name: tuple(leaf.shape) for name, leaf in metadata.item_metadata.items()}


def _damaged(directory: epath.Path) -> contextlib.AbstractContextManager[None]:
    fix = f'save it again, or remove {directory} where an earlier one is beside it'
    return _explained(directory, InputError, 'is damaged', fix)


def restore(directory: epath.Path, abstract: Mapping[str, jax.ShapeDtypeStruct]) -> Params:
    """The arrays of `abstract`, in its dtypes and on its shardings; more rows than were saved are zeros.

    Raises InputError where they are not whole.
    """
    import orbax.checkpoint as ocp

    arguments = {
        name: ocp.ArrayRestoreArgs(
            sharding=leaf.sharding, global_shape=leaf.shape, dtype=leaf.dtype, strict=False
        )
        for name, leaf in abstract.items()
    }  # fmt: skip
    with _damaged(directory), ocp.PyTreeCheckpointer() as checkpointer:
        return checkpointer.restore(
            directory / ARRAYS,
            args=ocp.args.PyTreeRestore(item=dict(abstract), restore_args=arguments, partial_restore=True),
        )


def list_files(directory: epath.Path) -> tuple[epath.Path, ...]:
    """The manifest and all files of the arrays."""
    return (directory / MANIFEST, *_walk(directory / ARRAYS))


def _walk(directory: epath.Path) -> Iterator[epath.Path]:
    for path in sorted(directory.iterdir()):  # two files of one name are told apart by where they stand
        if path.is_dir():
            yield from _walk(path)
        else:
            yield path
