"""The folder that a run keeps until it is finished: its lock, its journal, its removal."""

import signal
import threading
import time

import pytest
from conftest import Process

from fmnist_lab import scratch
from fmnist_lab.scratch import Scratch, abandoned, is_live, read_journal

CLAIM = """
import sys, time
from pathlib import Path
from fmnist_lab.scratch import Scratch
held = Scratch.claim(Path(sys.argv[1]), "id")
held.append({"kind": "run", "id": "a"})
print("claimed", flush=True)
time.sleep(600)
"""


@pytest.fixture
def other(tmp_path):
    """Another process that holds a scratch folder."""
    process = Process(tmp_path, "-c", CLAIM, str(tmp_path))
    while "claimed" not in process.out:
        assert process.running, process.err
        time.sleep(0.01)
    yield process
    process.stop()


def test_a_folder_is_its_process_own_until_that_is_gone(tmp_path, other):
    folder = tmp_path / "id"
    assert is_live(folder)
    assert abandoned(tmp_path) == []
    assert Scratch.reclaim(folder) is None
    other.kill(signal.SIGKILL)
    other.wait()
    assert not is_live(folder)
    assert abandoned(tmp_path) == [folder]
    taken = Scratch.reclaim(folder)
    assert taken.events() == [{"kind": "run", "id": "a"}]
    assert is_live(folder)
    taken.remove()
    assert list(tmp_path.iterdir()) == []


def test_several_runs_of_a_config_have_folders_of_their_own(tmp_path):
    held = [Scratch.claim(tmp_path, "id") for _ in range(3)]
    assert [each.folder.name for each in held] == ["id", "id-2", "id-3"]
    for each in held:
        each.release()
    assert len(abandoned(tmp_path)) == 3
    assert Scratch.reclaim(tmp_path / "id-2").folder == tmp_path / "id-2"


def test_those_who_look_do_not_keep_others_from_claiming(tmp_path):
    held = Scratch.claim(tmp_path, "id")
    held.release()
    over = threading.Event()

    def look() -> None:
        while not over.is_set():
            is_live(held.folder)

    lookers = [threading.Thread(target=look) for _ in range(4)]
    for each in lookers:
        each.start()
    try:
        for _ in range(20):
            taken = Scratch.reclaim(held.folder)
            assert taken is not None
            taken.release()
    finally:
        over.set()
        for each in lookers:
            each.join()


def test_looking_for_a_folder_that_is_gone_does_not_make_it_anew(tmp_path):
    held = Scratch.claim(tmp_path, "id")
    held.remove()
    assert not is_live(held.folder)
    assert Scratch.reclaim(held.folder) is None
    held.remove()
    assert list(tmp_path.iterdir()) == []


def test_who_waits_for_a_folder_that_is_then_removed_does_not_get_it(tmp_path, monkeypatch):
    monkeypatch.setattr(scratch, "PROBE_SECONDS", 10)
    held = Scratch.claim(tmp_path, "id")
    got = []
    waiting = threading.Thread(target=lambda: got.append(Scratch.reclaim(held.folder)))
    waiting.start()
    time.sleep(0.1)
    held.remove()
    waiting.join()
    assert got == [None]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("torn", [b'{"kind": "metr', b'{"kind": "file", "name": "\xc3', b"\0\0\0"])
def test_a_torn_line_takes_nothing_else_along(tmp_path, torn):
    held = Scratch.claim(tmp_path, "id")
    held.append({"kind": "params", "values": {"é": "1"}})
    held.release()
    with (held.folder / scratch.JOURNAL).open("ab") as journal:
        journal.write(torn)
    assert len(read_journal(held.folder)) == 1
    again = Scratch.reclaim(held.folder)
    again.append({"kind": "end", "status": "KILLED"})
    assert [event["kind"] for event in again.events()] == ["params", "end"]


def test_events_of_several_threads_do_not_mix(tmp_path):
    held = Scratch.claim(tmp_path, "id")

    def write(name: str) -> None:
        for number in range(200):
            held.append({"kind": name, "number": number, "padding": "x" * 300})

    writers = [threading.Thread(target=write, args=(name,)) for name in "ab"]
    for each in writers:
        each.start()
    for each in writers:
        each.join()
    for name in "ab":
        numbers = [event["number"] for event in held.events() if event["kind"] == name]
        assert numbers == list(range(200))


def test_a_removal_that_was_cut_short_is_no_run_and_is_cleared_away(tmp_path, monkeypatch):
    held = Scratch.claim(tmp_path, "id")
    held.append({"kind": "run", "id": "a"})
    with monkeypatch.context() as patch:
        patch.setattr(scratch.shutil, "rmtree", lambda *_, **__: None)
        held.remove()
    assert len(list(tmp_path.iterdir())) == 1
    assert abandoned(tmp_path) == []
    scratch.clear_half_removed(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_temporary_files_of_a_process_that_was_killed_are_cleared_away(tmp_path):
    held = Scratch.claim(tmp_path, "id")
    (held.temporary / "half").write_text("x")
    (held.files / "kept.png").write_text("x")
    held._unlock()
    again = Scratch.reclaim(held.folder)
    assert list(again.temporary.iterdir()) == []
    assert [path.name for path in again.files.iterdir()] == ["kept.png"]
