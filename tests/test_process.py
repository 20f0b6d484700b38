"""How programs end: at once, but with all that is to be done at the exit."""

import os
import subprocess
import sys

import pytest

CODE = """if True:
    import atexit, sys, threading, time
    from fmnist_lab.system import process

    class Lasting:
        def __del__(self):
            print("taken apart")

    lasting = Lasting()

    def linger():
        time.sleep(0.3)
        print("thread done")

    def main():
        threading.Thread(target=linger).start()
        atexit.register(print, "exit work done")
        {ending}

    process.run(main)"""
IN_ORDER = ["thread done", "exit work done"]


@pytest.mark.parametrize(
    ("ending", "code"),
    [("pass", 0), ("sys.exit()", 0), ("sys.exit(3)", 3), ("raise SystemExit(130)", 130)],
)
def test_threads_and_exit_work_are_done_and_nothing_is_taken_apart(doors, tmp_path, ending, code):
    done = doors.python(tmp_path, CODE.format(ending=ending))
    assert done.code == code, done.err
    assert done.out.splitlines() == IN_ORDER


def test_words_at_the_exit_are_said(doors, tmp_path):
    done = doors.python(tmp_path, CODE.format(ending='sys.exit("what was wrong")'))
    assert done.code == 1
    assert "what was wrong" in done.err
    assert done.out.splitlines()[:2] == IN_ORDER


def test_a_bug_keeps_its_traceback(doors, tmp_path):
    done = doors.python(tmp_path, CODE.format(ending="1 / 0"))
    assert done.code == 1
    assert "ZeroDivisionError" in done.err


def test_a_reader_that_has_left_is_no_complaint(doors, tmp_path):
    """Such as `head`: what is still to be written goes nowhere."""
    ending = "import os; os.close(os.dup(1)); print('x' * 100_000); os.close(1)"
    done = doors.python(tmp_path, CODE.format(ending=ending))
    assert done.code == 0
    assert not done.err


def test_a_disk_that_is_full_is_told(doors, tmp_path):
    code = "from fmnist_lab.system import process; process.run(lambda: print('x'))"
    command = f'{sys.executable} -c "{code}" > /dev/full'
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
    done = subprocess.run(
        ["sh", "-c", command], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode != 0
    assert "No space left on device" in done.stderr


FREEZES = """if True:
    import gc
    from fmnist_lab.system import process
    from fmnist_lab.training import runtime as backend

    process.ours = {ours}
    backend.start()
    first = gc.get_freeze_count()
    later = [[number] for number in range(1000)]
    process.ours = True
    backend.start()
    print(first > 100_000, gc.get_freeze_count() - first < 1000)"""


@pytest.mark.parametrize("ours", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_only_what_a_program_of_ours_imported_is_exempt_from_collection(doors, tmp_path, ours):
    """And not what a person's notebook had, or what a job before had left."""
    done = doors.python(tmp_path, FREEZES.format(ours=ours))
    assert done.out.split() == [str(ours), "True"], done.err
