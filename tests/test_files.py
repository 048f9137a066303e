"""Files: a write has happened completely or not at all."""

import hashlib
import importlib
import json
import math
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from mitosis.errors import OutputError
from mitosis.files import atomic_write, dump_json, make_folder, sha256, sole_writer, write_json, write_text


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_finished_block_replaces_the_file_and_leaves_nothing_beside_it(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with atomic_write(path) as stream:
        stream.write(b"new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert names_in(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_block_that_raises_leaves_the_old_file_and_no_temporary_one(tmp_path, error):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def fail(stream):
        stream.write(b"half of the n")
        raise error

    with pytest.raises(error), atomic_write(path) as stream:
        fail(stream)
    assert path.read_text() == "old"
    assert names_in(tmp_path) == ["a.txt"]


def test_a_full_disk_is_an_output_error_and_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(OutputError, match=r"a\.txt: writing failed \(No space left on device\)"), atomic_write(path):
        raise OSError(28, "No space left on device")
    assert path.read_text() == "old"
    assert names_in(tmp_path) == ["a.txt"]


def test_threads_that_write_leave_the_umask_alone(tmp_path, monkeypatch):
    real = os.umask

    def slowly(mask):
        before = real(mask)
        tmp_path.stat()  # lets other threads run between the two halves of a look at it
        return before

    before = os.umask(0o027)
    monkeypatch.setattr("mitosis.files.os.umask", slowly)
    try:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda number: write_text(tmp_path / f"{number}.txt", "x"), range(200)))
        assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o640}
    finally:
        assert os.umask(before) == 0o027


def test_a_new_file_can_be_read_by_whom_the_umask_allows(tmp_path):
    write_text(tmp_path / "ours.txt", "x")
    (tmp_path / "plain.txt").write_text("x")
    assert (tmp_path / "ours.txt").stat().st_mode == (tmp_path / "plain.txt").stat().st_mode


@pytest.mark.parametrize("place", ["missing/a.txt", "file/a.txt", "folder"])
def test_a_place_that_cannot_be_written_is_an_output_error_naming_it(tmp_path, place):
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError, match=place):
        write_text(tmp_path / place, "x")
    assert names_in(tmp_path) == ["file", "folder"]
    assert names_in(tmp_path / "folder") == []


def test_make_folder_makes_parents_and_may_be_repeated(tmp_path):
    folder = tmp_path / "a" / "b"
    assert make_folder(make_folder(folder)) == folder
    assert folder.is_dir()


@pytest.mark.parametrize(("place", "reason"), [("file", "a file of that name exists"), ("file/a", "Not a directory")])
def test_make_folder_says_what_is_in_the_way(tmp_path, place, reason):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match=reason):
        make_folder(tmp_path / place)
    assert (tmp_path / "file").read_text() == "in the way"


def test_text_is_utf8_with_plain_line_ends(tmp_path):
    write_text(tmp_path / "a.txt", "µm\nzwei\n")
    assert (tmp_path / "a.txt").read_bytes() == "µm\nzwei\n".encode()


def test_json_comes_back_and_ends_with_a_line_end(tmp_path):
    value = {"b": [1, 2.5, None], "a": "µm"}
    write_json(tmp_path / "a.json", value)
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert json.loads(text) == value
    assert text.endswith("}\n")
    assert "µm" in text


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_json_without_a_number_for_it_is_refused_and_nothing_written(tmp_path, number):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"score": number})
    assert names_in(tmp_path) == []
    with pytest.raises(ValueError, match="not JSON compliant"):
        dump_json([number])


@pytest.mark.parametrize("size", [0, 1, 1 << 20, (1 << 20) + 1])
def test_sha256_is_that_of_the_whole_content_and_tells_its_progress(tmp_path, size):
    content = bytes(i % 251 for i in range(1000)) * (size // 1000 + 1)
    path = tmp_path / "a.bin"
    path.write_bytes(content[:size])
    read = []
    assert sha256(path, read.append) == hashlib.sha256(content[:size]).hexdigest()
    assert sum(read) == size


locks = pytest.mark.skipif(sys.platform == "win32", reason="folders cannot be locked there")


@locks
def test_a_folder_has_one_writer_at_a_time_and_nothing_is_left_in_it(tmp_path):
    out = tmp_path / "a" / "out"
    with sole_writer(out), sole_writer(tmp_path / "other"):
        complaint = r"out: another command is writing there\. Wait .* another --out"
        with pytest.raises(OutputError, match=complaint), sole_writer(out):
            pass
        assert list(out.iterdir()) == []
    with pytest.raises(KeyError), sole_writer(out):
        raise KeyError
    assert out.exists()  # it was there before
    with pytest.raises(KeyError), sole_writer(tmp_path / "new"):
        raise KeyError
    assert not (tmp_path / "new").exists()
    with pytest.raises(OSError, match="exists"), sole_writer(tmp_path / "new"):
        [(tmp_path / "new" / "a").mkdir() for _ in range(2)]
    assert (tmp_path / "new" / "a").exists()
    with sole_writer(out):
        pass


@locks
def test_a_writer_that_is_killed_lets_go(tmp_path):
    code = """
import sys, pathlib, mitosis.files
with mitosis.files.sole_writer(pathlib.Path(sys.argv[1])):
    print(1, flush=True)
    sys.stdin.read()
"""
    words = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"1\n"
        with pytest.raises(OutputError, match="another command"), sole_writer(tmp_path):
            pass
        other.send_signal(signal.SIGKILL)
    with sole_writer(tmp_path):
        pass


@locks
def test_a_writer_may_wait_for_another(tmp_path, monkeypatch):
    fcntl, waits, written = importlib.import_module("fcntl"), threading.Event(), []
    flock = fcntl.flock

    def spy(handle, how):
        if not how & fcntl.LOCK_NB:
            with pytest.raises(BlockingIOError):
                flock(handle, how | fcntl.LOCK_NB)
            waits.set()
        flock(handle, how)

    def write_next():
        with sole_writer(tmp_path, wait=True):
            written.append("next")

    monkeypatch.setattr(fcntl, "flock", spy)
    with ThreadPoolExecutor(1) as pool:
        with sole_writer(tmp_path):
            waiting = pool.submit(write_next)
            assert waits.wait(30)
            written.append("first")
        waiting.result()
    assert written == ["first", "next"]


def test_where_folders_cannot_be_locked_nothing_is_held(tmp_path, monkeypatch):
    def flock(_handle, _how):
        raise OSError("Function not implemented")

    class Locks:
        LOCK_EX = LOCK_NB = 0

    Locks.flock = staticmethod(flock)
    for module in (Locks, None):
        monkeypatch.setitem(sys.modules, "fcntl", module)
        with sole_writer(tmp_path), sole_writer(tmp_path):
            pass
