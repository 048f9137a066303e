"""The only module that replaces a file: a write is complete or has not happened."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from importlib import import_module
from pathlib import Path
from threading import Lock
from typing import Any, BinaryIO

from mitosis.errors import OutputError

__all__ = [
    "appearing_folder",
    "atomic_write",
    "dump_json",
    "make_folder",
    "safe_cell",
    "sha256",
    "sole_writer",
    "write_json",
    "write_text",
]

_UMASK = Lock()


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file beside `path`; it takes the name of `path` when the block ends without an error.

    Raises
    ------
    OutputError
        The folder cannot be written to, or the disk is full. What stood at `path` before is still there.
    """
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:40]}.", suffix=".part")
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror}). Choose a folder you may write to.") from error
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except OSError as error:
        raise OutputError(
            f"{path}: writing failed ({error.strerror or error}). Free some space and run again."
        ) from error
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()


def _umask() -> int:
    with _UMASK:  # it can only be read by setting it, and two threads at once would leave it at 0
        mask = os.umask(0)
        os.umask(mask)
    return mask


def make_folder(path: Path) -> Path:
    """Create `path` and its parents if need be.

    Raises
    ------
    OutputError
        It cannot be created, or a file stands in its place.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = "a file of that name exists" if isinstance(error, FileExistsError) else error.strerror
        raise OutputError(f"{path}: cannot make this folder ({reason}). Choose another --out.") from error
    if not os.access(path, os.W_OK):
        raise OutputError(f"{path}: this folder is not writable. Choose another --out.")
    return path


@contextmanager
def sole_writer(folder: Path, *, wait: bool = False) -> Iterator[None]:
    """Hold a folder, which is made if need be, so that no other command writes to it until the block ends.

    The system lets go of it when the process ends, however that happens. Nothing is held where folders cannot be locked
    (Windows, some network file systems). A folder that was made, and is empty when the block ends by an error, is gone.

    Parameters
    ----------
    wait : bool
        Wait for another command that holds it, instead of an error.

    Raises
    ------
    OutputError
        Another command holds it, or it cannot be made.
    """
    is_new = not folder.exists()
    make_folder(folder)
    with ExitStack() as stack:
        with suppress(ImportError):
            locks = import_module("fcntl")
            try:
                handle = os.open(folder, os.O_RDONLY)
                stack.callback(os.close, handle)
                locks.flock(handle, locks.LOCK_EX | (0 if wait else locks.LOCK_NB))
            except BlockingIOError as error:
                raise OutputError(
                    f"{folder}: another command is writing there. Wait until it is done, or choose another --out."
                ) from error
            except OSError:  # it may not be read, or its file system has no locks
                pass
        try:
            yield
        except BaseException:
            if is_new:
                with suppress(OSError):  # it is not empty
                    folder.rmdir()
            raise


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8 with `\\n` line ends, atomically."""
    with atomic_write(path) as stream:
        stream.write(text.encode())


def dump_json(value: Any) -> str:
    """JSON text with a stable layout; NaN and infinity are refused."""
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON, atomically."""
    write_text(path, dump_json(value))


def sha256(path: Path, progress: Callable[[int], None] | None = None) -> str:
    """Hex digest of a file's content, read in blocks of 1 MiB."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
            if progress:
                progress(len(block))
    return digest.hexdigest()


def safe_cell(text: str) -> str:
    """Programs run a cell that begins like a formula; an apostrophe in front makes it text again."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r", "'")) else text


@contextmanager
def appearing_folder(out: Path) -> Iterator[Path]:
    """A folder that gets the name `out` when the block ends without an error, and is gone otherwise.

    `out` may be there, if it is empty.
    """
    part = make_folder(out.absolute().parent) / f".{out.absolute().name}.part"
    shutil.rmtree(part, ignore_errors=True)  # of a run that was killed
    try:
        yield make_folder(part)
        make_folder(out).rmdir()
        part.rename(out)
    finally:
        shutil.rmtree(part, ignore_errors=True)
