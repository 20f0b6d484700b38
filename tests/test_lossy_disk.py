"""The lossy disk itself: what it loses, what it keeps, and that SQLite can live on it."""

import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import lossy_mount
import pytest
from lossy_disk import BLOCK, KINDS, ROOT, Disk, Node, moments, read_tree, write_tree

FILE, FOLDER = 0o100644, 0o040755


@pytest.fixture
def disk() -> Disk:
    return Disk({"old": b"synced", "folder": None, "folder/file": b"1" * 5})


def put(disk: Disk, path: str, content: bytes) -> Node:
    above, _, name = path.rpartition("/")
    node = disk.make(disk.find(above).number, name, FILE)
    disk.write(node.number, 0, content)
    return node


def test_what_was_synced_stays_and_what_was_not_is_lost(disk):
    before = disk.now()
    for kind in KINDS:
        assert disk.after_cut(kind) == before
    put(disk, "new", b"never synced")
    disk.write(disk.find("old").number, 6, b" and more")
    assert disk.now() == before | {"new": b"never synced", "old": b"synced and more"}
    assert disk.after_cut("strict") == before
    assert disk.after_cut("ordered") == before | {"new": b""}


def test_a_file_needs_its_folder_synced_and_a_folder_its_files(disk):
    name_only, content_only = put(disk, "name", b"x"), put(disk, "folder/content", b"x")
    disk.sync(ROOT)
    disk.sync(content_only.number)
    assert name_only.synced_content == b""
    left = disk.after_cut("strict")
    assert left["name"] == b""
    assert "folder/content" not in left
    assert disk.after_cut("ordered")["folder/content"] == b"x"
    disk.sync(disk.find("folder").number)
    assert disk.after_cut("strict")["folder/content"] == b"x"


def test_a_folder_is_lost_with_all_in_it_unless_the_one_above_is_synced(disk):
    folder = disk.make(ROOT, "new", FOLDER)
    disk.sync(put(disk, "new/file", b"x").number)
    disk.sync(folder.number)
    assert "new" not in disk.after_cut("strict")
    disk.sync(ROOT)
    assert disk.after_cut("strict")["new/file"] == b"x"


def test_a_removal_is_undone_unless_the_folder_is_synced(disk):
    disk.remove(disk.find("folder").number, "file")
    disk.remove(ROOT, "folder")
    assert disk.after_cut("strict")["folder/file"] == b"11111"
    assert "folder" not in disk.after_cut("ordered")
    disk.sync(ROOT)
    assert disk.after_cut("strict") == {"old": b"synced"}


@pytest.mark.parametrize("synced", ["", "folder"])
def test_a_rename_is_lost_or_kept_as_a_whole(disk, synced):
    folder = disk.find("folder").number
    disk.rename(ROOT, "old", folder, "file")
    assert disk.after_cut("strict") == {"old": b"synced", "folder": None, "folder/file": b"11111"}
    expected = {"folder": None, "folder/file": b"synced"}
    for seed in range(9):
        assert disk.after_cut("scattered", seed) == expected
    disk.sync(disk.find(synced).number)
    assert disk.after_cut("strict") == disk.after_cut("ordered") == expected


def test_what_is_written_aside_synced_and_renamed_is_never_torn(disk):
    part = put(disk, "part", b"2" * 3 * BLOCK)
    disk.sync(part.number)
    disk.rename(ROOT, "part", ROOT, "old")
    left = {disk.after_cut(kind, seed)["old"] for kind in KINDS for seed in range(9)}
    assert left == {b"synced", b"2" * 3 * BLOCK}


def test_scattered_blocks_are_old_or_new_ones(disk):
    number = disk.find("old").number
    disk.resize(number, 2 * BLOCK)
    disk.write(number, 0, b"a" * 2 * BLOCK)
    disk.sync(number)
    disk.write(number, 0, b"b" * (2 * BLOCK + 1))
    left = {disk.after_cut("scattered", seed)["old"] for seed in range(99)}
    assert left == {
        first * BLOCK + second * BLOCK + third
        for first in (b"a", b"b")
        for second in (b"a", b"b")
        for third in (b"\0", b"b")
    }


def test_what_was_recorded_gives_the_disk_at_each_moment(disk):
    before = disk.now()
    put(disk, "new", b"12")
    disk.resize(disk.find("new").number, 1)
    disk.sync(ROOT)
    seen = [
        (operation[0], again.now().get("new")) for operation, again in moments(disk.log, before)
    ]
    assert seen == [("make", b""), ("write", b"12"), ("resize", b"1"), ("sync", b"1")]


def test_a_tree_is_written_and_read(disk, tmp_path):
    (tmp_path / "stray").mkdir()
    write_tree(disk.now(), tmp_path)
    assert read_tree(tmp_path) == disk.now()


# Mounted, for other programs

PROGRAM = """
import fcntl, mmap, os, shutil, sqlite3
from pathlib import Path

assert Path("old").read_text() == "old"
with open("synced", "wb") as file:
    file.write(b"1" * 300_000)
    file.flush()
    os.fsync(file.fileno())
    file.write(b"2" * 300_000)
Path("never").write_text("never synced")
with open("mapped", "w+b") as file:
    file.truncate(10_000)
    with mmap.mmap(file.fileno(), 10_000) as mapped:
        mapped[9_000:9_003] = b"abc"
        mapped.flush()
        mapped[:3] = b"abc"
    assert file.read(3) == b"abc"
    with open("mapped", "rb") as other:
        fcntl.flock(file, fcntl.LOCK_EX)
        try:
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pass
        else:
            raise AssertionError("locked twice")
os.mkdir("many")
for number in range(200):
    Path(f"many/{number:0100}").touch()
assert len(os.listdir("many")) == 200
try:
    os.rmdir("many")
except OSError as error:
    assert error.strerror == "Directory not empty"
shutil.rmtree("many")
folder = os.open(".", os.O_RDONLY)
os.fsync(folder)
os.rename("synced", "renamed")
with open("old", "a") as file:
    file.write(" and new")
os.chmod("old", 0o600)
assert os.stat("old").st_mode == 0o100600
assert Path("old").read_text() == "old and new"
assert sorted(os.listdir()) == ["mapped", "never", "old", "renamed"]
"""

TRANSACTIONS = """
import sqlite3, sys
connection = sqlite3.connect("rows.db")
connection.execute(f"pragma journal_mode = {sys.argv[1]}")
connection.execute("pragma synchronous = extra")
connection.execute("create table rows (number, padding)")
for number in range(3):
    with connection:
        connection.execute("insert into rows values (?, ?)", (number, "x" * 5000))
    open(f"committed {number}", "x")
"""


def run(folder: Path, program: str, *words: str) -> None:
    done = subprocess.run([sys.executable, "-c", program, *words], cwd=folder, check=False)
    assert done.returncode == 0


def test_programs_use_it_as_any_folder(fuse, tmp_path):
    (tmp_path / "old").write_text("old")
    with lossy_mount.mounted(tmp_path) as mounted:
        run(tmp_path, PROGRAM)
    assert read_tree(tmp_path) == {"old": b"old"}  # below
    *_, (_, disk) = moments(mounted.log, {"old": b"old"})
    mapped = b"abc" + bytes(8_997) + b"abc" + bytes(997)
    assert disk.now() == {
        "old": b"old and new",
        "renamed": b"1" * 300_000 + b"2" * 300_000,
        "never": b"never synced",
        "mapped": mapped,
    }
    left = {"old": b"old", "never": b"", "mapped": b"\0\0\0" + mapped[3:]}
    assert disk.after_cut("strict") == left | {"synced": b"1" * 300_000}
    assert disk.after_cut("ordered") == left | {"renamed": b"1" * 300_000}


@pytest.mark.parametrize("journal", ["delete", "wal"])
def test_a_transaction_of_sqlite_outlasts_a_power_cut(fuse, tmp_path, journal):
    """The disk loses nothing that SQLite has synced as it should be, at any moment."""
    disk_folder, left = tmp_path / "disk", tmp_path / "left"
    disk_folder.mkdir()
    left.mkdir()
    with lossy_mount.mounted(disk_folder) as mounted:
        run(disk_folder, TRANSACTIONS, journal)
    committed = -1
    for number, (operation, disk) in enumerate(moments(mounted.log)):
        if operation[0] == "make" and operation[2].startswith("committed"):
            committed += 1
        for kind in KINDS if committed >= 0 else ():
            write_tree(disk.after_cut(kind, number), left)
            with closing(sqlite3.connect(left / "rows.db")) as connection:
                assert connection.execute("pragma integrity_check").fetchone() == ("ok",)
                rows = [row for (row,) in connection.execute("select number from rows")]
            assert rows in (list(range(committed + 1)), list(range(committed + 2)))
    assert committed == 2


def test_a_process_that_stays_in_the_folder_does_not_hold_it_up(fuse, tmp_path):
    stays = [sys.executable, "-c", "print(flush=True); input()"]
    with lossy_mount.mounted(tmp_path):
        process = subprocess.Popen(
            stays, cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        process.stdout.readline()
    process.communicate(b"\n")
    assert read_tree(tmp_path) == {}
