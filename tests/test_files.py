"""Files and folders are written whole or not at all, and nothing is left behind."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest

import qmambair_basicsr
from qmambair_basicsr.cli import run_tool
from qmambair_basicsr.files import (
    hash_file,
    read_record,
    remove_leftovers,
    replaced,
    replaced_folder,
    write_bytes,
    write_text,
)
from qmambair_basicsr.studies.study_runs import Store

PACKAGE = Path(qmambair_basicsr.__file__).parent


@pytest.fixture
def small_disk():
    """No file may grow beyond 64 KiB; a real error of the operating system in the middle of a write."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def names(folder):
    return sorted(path.name for path in folder.rglob("*"))


def test_writes_text_and_bytes_and_makes_folders(tmp_path):
    write_text(tmp_path / "new" / "ü.txt", "Größe\n")
    write_bytes(tmp_path / "new" / "b.bin", b"12", durable=True)
    assert (tmp_path / "new" / "ü.txt").read_text(encoding="utf-8") == "Größe\n"
    assert (tmp_path / "new" / "b.bin").read_bytes() == b"12"
    assert names(tmp_path) == ["b.bin", "new", "ü.txt"]


def test_permissions_are_those_of_a_plain_file(tmp_path):
    write_bytes(tmp_path / "ours", b"")
    (tmp_path / "plain").write_bytes(b"")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_full_disk_keeps_the_old_file_and_nothing_else(tmp_path, small_disk):
    path = tmp_path / "net.pth"
    write_bytes(path, b"old")
    with pytest.raises(OSError, match=r"File too large: '.*net\.pth'$"):
        write_bytes(path, bytes(1 << 17))
    assert path.read_bytes() == b"old" and names(tmp_path) == ["net.pth"]


@pytest.mark.parametrize("stop", [KeyboardInterrupt, OSError(errno.ENOSPC, "No space left on device"), ValueError])
def test_interruption_keeps_the_old_file_and_nothing_else(tmp_path, stop):
    path = tmp_path / "a.onnx"
    write_bytes(path, b"old")
    with pytest.raises(stop if isinstance(stop, type) else OSError), replaced(path) as part:
        part.write_bytes(b"half")
        assert part.parent == tmp_path and part.name.startswith(".") and part.suffix == ".part"
        raise stop
    assert path.read_bytes() == b"old" and names(tmp_path) == ["a.onnx"]


def test_errors_name_the_destination_or_the_file_they_are_about(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"file'$"):
        write_text(tmp_path / "file" / "below.txt", "x")
    with pytest.raises(IsADirectoryError, match=re.escape(str(tmp_path))):
        write_text(tmp_path, "x")
    with pytest.raises(FileNotFoundError, match="other") as error, replaced(tmp_path / "a") as part:
        part.write_bytes((tmp_path / "other").read_bytes())
    assert "other" in str(error.value.filename)
    assert names(tmp_path) == ["file"]


def test_devices_are_written_to_and_not_replaced(tmp_path):
    write_text("/dev/null", "gone")
    assert Path("/dev/null").is_char_device()
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    write_bytes(tmp_path / "pipe", b"through")
    assert os.read(reader, 100) == b"through"
    os.close(reader)
    assert (tmp_path / "pipe").is_fifo()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
def test_a_full_disk_is_one_message_of_a_command(capsys):
    assert run_tool(lambda: write_text("/dev/full", "x")) == 2
    assert capsys.readouterr().err == "error: /dev/full: No space left on device; free space on its disk\n"


def test_long_names_fit(tmp_path):
    write_text(tmp_path / ("n" * 255), "x")
    assert names(tmp_path) == ["n" * 255]


def test_folder_takes_the_place_of_an_older_one(tmp_path):
    target = tmp_path / "HR.lmdb"
    for content in ("old", "new"):
        with replaced_folder(target) as part:
            assert part.suffix == ".lmdb" and not part.exists()
            part.mkdir()
            write_text(part / content, content)
    assert names(tmp_path) == ["HR.lmdb", "new"]


def test_failed_folder_leaves_the_older_one(tmp_path, monkeypatch):
    target = tmp_path / "HR.lmdb"
    target.mkdir()
    write_text(target / "old", "")
    with pytest.raises(KeyboardInterrupt), replaced_folder(target) as part:
        part.mkdir()
        write_text(part / "half", "")
        raise KeyboardInterrupt
    assert names(tmp_path) == ["HR.lmdb", "old"]
    with pytest.raises(FileNotFoundError, match=r"HR\.lmdb'$"), replaced_folder(target):
        pass  # nothing was made
    assert names(tmp_path) == ["HR.lmdb", "old"]


def test_hash_is_that_of_the_whole_content(tmp_path):
    content = os.urandom((1 << 20) + 17)
    write_bytes(tmp_path / "a", content)
    assert hash_file(tmp_path / "a") == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize(
    "content", [b"", b'{"results": {"Set5": ', b"[1]", b"null", b'{"results": null}', b"\xff\xfe{}"]
)
def test_damaged_records_are_named_with_the_way_out(content, tmp_path, capsys):
    """One message of a command, not a traceback."""
    store, wanted = Store(tmp_path), {"results": {"Set5": {}}}
    assert store.read("run") == {"results": {}} and read_record(tmp_path / "none.json") is None
    file = store.finished / "run.json"
    write_text(file, json.dumps(wanted))
    assert store.read("run") == wanted
    file.write_bytes(content)
    assert run_tool(lambda: store.read("run")) == 2
    assert f"{file} is damaged: it is no record of an earlier run; delete it" in capsys.readouterr().err


def test_nothing_else_renames_over_a_file():
    found = {p.relative_to(PACKAGE) for p in PACKAGE.rglob("*.py") if "os.replace" in p.read_text(encoding="utf-8")}
    assert found == {Path("files.py"), Path("ops/build.py")}  # the latter runs from setup.py, without the package


KILLED = """
import os, signal, sys
from pathlib import Path
from qmambair_basicsr import files

folder = Path(sys.argv[1])
with files.replaced(folder / "net.pth") as part:
    part.write_bytes(b"half")
    if os.fork() == 0:
        with files.replaced_folder(folder / "pack.lmdb") as new:
            new.mkdir()
            files.os.replace = lambda *_: None
            real = os.rename
            real(folder / "pack.lmdb", files._neighbour(folder / "pack.lmdb", "old.pack.lmdb"))
            os.kill(os.getpid(), signal.SIGKILL)
    os.wait()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_process_left_is_removed_or_brought_back(tmp_path):
    """The folder was moved away when its process was killed, and the new one was not yet in its place."""
    (tmp_path / "pack.lmdb").mkdir()
    (tmp_path / "pack.lmdb" / "data").write_text("old")
    subprocess.run([sys.executable, "-W", "ignore", "-c", KILLED, str(tmp_path)], check=False)
    assert len([name for name in names(tmp_path) if name.startswith(".")]) == 3
    with replaced(tmp_path / "mine") as mine:  # of a process that lives
        mine.write_bytes(b"")
        foreign = tmp_path / mine.name.replace("-", "0-", 1)
        foreign.write_bytes(b"")  # of another machine
        assert not [name for name in names(tmp_path) if name.startswith(".") and name not in (mine.name, foreign.name)]
        assert remove_leftovers(tmp_path) == []
    assert (tmp_path / "pack.lmdb" / "data").read_text() == "old"
    assert remove_leftovers(tmp_path / "none") == []
