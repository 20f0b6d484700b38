"""The folder that a run keeps until it is finished: its lock, its journal, its removal."""

import signal
import threading
import time

import pytest
from doors import Process

from fmnist_lab.tracking import journal
from fmnist_lab.tracking.events import End, Metrics, Opened, Params, Status
from fmnist_lab.tracking.journal import Journal, abandoned, is_live, read_events

CLAIM = """
import sys, time
from pathlib import Path
from fmnist_lab.tracking.events import Opened
from fmnist_lab.tracking.journal import Journal
held = Journal.claim(Path(sys.argv[1]), "id")
held.append(Opened("a"))
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
    assert Journal.reclaim(folder) is None
    other.kill(signal.SIGKILL)
    other.wait()
    assert not is_live(folder)
    assert abandoned(tmp_path) == [folder]
    taken = Journal.reclaim(folder)
    assert taken.events() == [Opened("a")]
    assert is_live(folder)
    taken.remove()
    assert list(tmp_path.iterdir()) == []


def test_several_runs_of_a_config_have_folders_of_their_own(tmp_path):
    held = [Journal.claim(tmp_path, "id") for _ in range(3)]
    assert [each.folder.name for each in held] == ["id", "id-2", "id-3"]
    for each in held:
        each.release()
    assert len(abandoned(tmp_path)) == 3
    assert Journal.reclaim(tmp_path / "id-2").folder == tmp_path / "id-2"


def test_those_who_look_do_not_keep_others_from_claiming(tmp_path):
    held = Journal.claim(tmp_path, "id")
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
            taken = Journal.reclaim(held.folder)
            assert taken is not None
            taken.release()
    finally:
        over.set()
        for each in lookers:
            each.join()


def test_looking_for_a_folder_that_is_gone_does_not_make_it_anew(tmp_path):
    held = Journal.claim(tmp_path, "id")
    held.remove()
    assert not is_live(held.folder)
    assert Journal.reclaim(held.folder) is None
    held.remove()
    assert list(tmp_path.iterdir()) == []


def test_who_waits_for_a_folder_that_is_then_removed_does_not_get_it(tmp_path, monkeypatch):
    monkeypatch.setattr(journal, "PROBE_SECONDS", 10)
    held = Journal.claim(tmp_path, "id")
    got = []
    waiting = threading.Thread(target=lambda: got.append(Journal.reclaim(held.folder)))
    waiting.start()
    time.sleep(0.1)
    held.remove()
    waiting.join()
    assert got == [None]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("torn", [b'{"kind": "metr', b'{"kind": "file", "name": "\xc3', b"\0\0\0"])
def test_a_torn_line_takes_nothing_else_along(tmp_path, torn):
    held = Journal.claim(tmp_path, "id")
    held.append(Params({"é": "1"}))
    held.release()
    with (held.folder / journal.EVENTS).open("ab") as file:
        file.write(torn)
    assert len(read_events(held.folder)) == 1
    again = Journal.reclaim(held.folder)
    again.append(End(Status.KILLED))
    assert [type(event) for event in again.events()] == [Params, End]


def test_events_of_several_threads_do_not_mix(tmp_path):
    held = Journal.claim(tmp_path, "id")

    def write(name: str) -> None:
        for number in range(200):
            held.append(Metrics(number, 0, {name * 300: 1.0}))

    writers = [threading.Thread(target=write, args=(name,)) for name in "ab"]
    for each in writers:
        each.start()
    for each in writers:
        each.join()
    for name in "ab":
        numbers = [event.step for event in held.events() if name * 300 in event.values]
        assert numbers == list(range(200))


def test_a_removal_that_was_cut_short_is_no_run_and_is_cleared_away(tmp_path, monkeypatch):
    held = Journal.claim(tmp_path, "id")
    held.append(Opened("a"))
    with monkeypatch.context() as patch:
        patch.setattr(journal.shutil, "rmtree", lambda *_, **__: None)
        held.remove()
    assert len(list(tmp_path.iterdir())) == 1
    assert abandoned(tmp_path) == []
    journal.clear_half_removed(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_temporary_files_of_a_process_that_was_killed_are_cleared_away(tmp_path):
    held = Journal.claim(tmp_path, "id")
    (held.temporary / "half").write_text("x")
    (held.files / "kept.png").write_text("x")
    held._unlock()
    again = Journal.reclaim(held.folder)
    assert list(again.temporary.iterdir()) == []
    assert [path.name for path in again.files.iterdir()] == ["kept.png"]
