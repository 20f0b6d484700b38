"""The package as others get it: its version, its source distribution."""

import shutil
import subprocess
import sys
import tarfile
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from doors import QUICK
from tracked import Tracked, check_quiet

import fmnist_lab
from fmnist_lab import config

ROOT = Path(config.__file__).parents[2]

pytestmark = pytest.mark.skipif(
    not (ROOT / "pyproject.toml").exists(), reason="the tests do not run from a checkout"
)


def test_the_version_is_the_same_everywhere():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert fmnist_lab.__version__ == version == metadata.version("fmnist_lab")
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert cited["version"] == version
    with pytest.raises(AttributeError, match="has no attribute 'versoin'"):
        fmnist_lab.versoin  # noqa: B018


@pytest.fixture(scope="session")
def sdist(tmp_path_factory) -> Path:
    """The unpacked source distribution."""
    pytest.importorskip("hatchling")
    place = tmp_path_factory.mktemp("sdist")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", place]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (file,) = place.glob("*.tar.gz")
    with tarfile.open(file) as archive:
        archive.extractall(place, filter="data")
    return place / file.name.removesuffix(".tar.gz")


@pytest.mark.slow
def test_a_source_distribution_holds_the_repository_and_nothing_else(sdist):
    if not (ROOT / ".git").exists() or not shutil.which("git"):
        pytest.skip("there is no repository to compare with")
    listed = subprocess.run(
        ["git", "-C", ROOT, "ls-files"], check=True, capture_output=True, text=True
    )
    packed = {path.relative_to(sdist).as_posix() for path in sdist.rglob("*") if path.is_file()}
    assert packed == {*listed.stdout.splitlines(), "PKG-INFO"}


@pytest.mark.slow
def test_a_source_distribution_can_be_installed_and_used(sdist, doors, tmp_path):
    site = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    install = [*pip, "--no-deps", "--no-build-isolation", "--target", site, sdist]
    subprocess.run(install, check=True, capture_output=True)
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    for words in (["--help"], ["run", "--help"], ["runs", "--help"]):
        process = doors.package(folder, *words, PYTHONPATH=str(site))
        assert (process.code, process.err) == (0, "")
        assert "python -m fmnist_lab" in process.out
    assert (site / "bin" / "fmnist-lab").exists()
    assert (site / "fmnist_lab" / "py.typed").exists()
    assert list(folder.iterdir()) == []


@pytest.fixture(scope="session")
def wheel(tmp_path_factory) -> Path:
    """The package installed from its wheel into a folder."""
    place = tmp_path_factory.mktemp("wheel")
    source = Path(config.__file__).parents[2]
    if not (source / "pyproject.toml").exists():
        pytest.skip("the tests do not run from a checkout")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    isolation = [] if shutil.which("hatchling") is None else ["--no-build-isolation"]
    build = [*pip, "wheel", "--quiet", "--no-deps", *isolation, "-w", place, source]
    subprocess.run(build, check=True, capture_output=True)
    (file,) = place.glob("*.whl")
    install = [*pip, "install", "--quiet", "--no-deps", "--target", place / "site", file]
    subprocess.run(install, check=True, capture_output=True)
    return place / "site"


@pytest.mark.slow
def test_a_wheel_brings_its_configs_along(wheel, doors, tmp_path):
    where = "import fmnist_lab, fmnist_lab.config as c; print(fmnist_lab.__file__, c.conf_dir())"
    process = doors.python(tmp_path, where, PYTHONPATH=str(wheel))
    assert process.out.split() == [
        str(wheel / "fmnist_lab/__init__.py"),
        str(wheel / "fmnist_lab/conf"),
    ]
    source = Path(config.__file__).parents[2] / "conf"
    packed = {path.relative_to(wheel / "fmnist_lab/conf") for path in wheel.rglob("*.yaml")}
    assert packed == {path.relative_to(source) for path in source.rglob("*.yaml")}


@pytest.mark.slow
def test_a_wheel_runs_and_knows_no_commit(wheel, doors, tmp_path):
    process = doors("run", tmp_path, *QUICK, PYTHONPATH=str(wheel))
    assert process.code == 0, process.err
    check_quiet(process)
    found = Tracked(tmp_path).one()
    assert found.info.status == "FINISHED"
    assert "mlflow.source.git.commit" not in found.data.tags
    # The source of the native engine is in it, too.
    assert found.data.tags["engine"] == "native"
