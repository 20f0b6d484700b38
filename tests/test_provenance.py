"""What a run keeps of its code and its libraries, and what a sweep says when they change."""

import shutil
import subprocess
from importlib import metadata
from pathlib import Path

import pytest

from fmnist_lab.sweep.job import CHANGED_TAG, Sweep
from fmnist_lab.system import provenance


def git(folder: Path, *words: str) -> None:
    who = ("-c", "user.name=n", "-c", "user.email=e@example.org")
    subprocess.run(["git", "-C", folder, *who, *words], check=True, capture_output=True)


@pytest.fixture
def checkout(tmp_path, monkeypatch) -> Path:
    """A checkout of a package of two files, in which nothing has changed."""
    if not shutil.which("git"):
        pytest.skip("git is not installed")
    folder = tmp_path / "checkout"
    (folder / "package").mkdir(parents=True)
    (folder / "conf").mkdir()
    (folder / "package" / "a.py").write_text("a = 1\n")
    (folder / "conf" / "config.yaml").write_text("epochs: 5\n")
    git(folder, "init", "-q")
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "first")
    monkeypatch.setattr(provenance, "PACKAGE", folder / "package")
    return folder


def test_changes_are_a_patch_that_brings_them_back(checkout, tmp_path):
    assert provenance.changes() == ""
    git(checkout, "config", "diff.noprefix", "true")
    git(checkout, "config", "color.ui", "always")
    other = tmp_path / "other"
    git(tmp_path, "clone", "-q", str(checkout), str(other))
    (checkout / "package" / "a.py").write_text("a = 2  # Ä\n")
    (checkout / "package" / "new.py").write_text("b = 1\n")
    (checkout / "conf" / "config.yaml").unlink()
    (checkout / "notes.txt").write_text("not code")
    (tmp_path / "code.diff").write_text(provenance.changes(), encoding="utf-8")
    git(other, "apply", str(tmp_path / "code.diff"))
    assert (other / "package" / "a.py").read_text() == "a = 2  # Ä\n"
    assert (other / "package" / "new.py").read_text() == "b = 1\n"
    assert not (other / "conf" / "config.yaml").exists()
    assert not (other / "notes.txt").exists()


@pytest.mark.parametrize("name", [".env", "api.key", "my_secrets.py", "Password.txt", "id_rsa"])
def test_secrets_are_left_out_and_named(checkout, name):
    (checkout / "package" / name).write_text("hunter2\n")
    (checkout / "package" / "a.py").write_text("a = 3\n")
    said = provenance.changes()
    assert f"# Left out, as it may hold a secret: package/{name}\n" in said
    assert "a = 3" in said
    assert "hunter2" not in said
    git(checkout, "add", "-A")
    assert "hunter2" not in provenance.changes()


def test_changes_that_are_too_large_are_named_only(checkout):
    (checkout / "package" / "a.py").write_text("x" * (provenance.MOST_CHANGES + 1))
    said = provenance.changes()
    assert len(said) < 500
    assert "# Not kept: 1,0" in said
    assert "# package/a.py\n" in said


def test_packages_are_those_that_are_installed():
    found = provenance.packages().splitlines()
    assert found[0].startswith("# Python 3.")
    for library in ("numpy", "mlflow", "keras"):
        assert f"{library}=={metadata.version(library)}" in found
    assert not [line for line in found if line.startswith("fmnist_lab")]


def test_a_job_that_begins_after_the_code_has_changed_is_marked(tmp_path, monkeypatch):
    sweep = Sweep(None, tmp_path, ("seed",), (), 0, code=provenance.code_version())
    assert CHANGED_TAG not in sweep.job(0, ["seed=1"]).member.more
    monkeypatch.setattr(provenance, "PACKAGE", tmp_path)
    job = sweep.job(1, ["seed=2"])
    assert job.member.more[CHANGED_TAG] == "true"
    job.attempt(lambda: {"accuracy/test": 0.5})
    assert "The code has changed since this job's sweep began." in job.log.read_text()
