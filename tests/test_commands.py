"""Every command on every page: those that make runs are composed, the others are parsed.

Other tests run the tutorial's (test_docs), those of own_model.md (test_own) and of serving.md
(test_serving), the studies' (test_experiments) and what a tracking server needs (tests/cluster).
"""

import contextlib
import re
import shlex
import tomllib
from importlib.util import find_spec
from pathlib import Path

import pytest
from cyclopts import App, MissingArgumentError

import fmnist_lab

ROOT = Path(fmnist_lab.__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "experiments").glob("**/*.md")),
]
PAGES = [page for page in PAGES if page.is_file()]
# Values for the words of a page, where a run is only composed.
INSTEAD = {
    "…": "model.dropout=interval(0,0.5) data.validation_fraction=0.1 hydra.sweeper.n_trials=2",
    "FOLDER/config.yaml": "own/config.yaml",
    "leaked.csv": "images.csv",
    "FILE": "images.csv",
}
# Programs of others, which their own tests run, or nobody can run everywhere.
OTHERS = {
    *("apt-get", "bash", "createdb", "createuser", "curl", "export", "mlflow", "openssl"),
    *("base64", "pre-commit", "printf", "ray", "sudo", "tr", "{"),
}
OURS = ("python", "pip", "fmnist-lab", "ruff", "mypy", "lint-imports", "sphinx-build")

pytestmark = pytest.mark.skipif(len(PAGES) < 20, reason="not run from a checkout")


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path) -> list[str]:
    """The lines of a page's shell blocks, a command each."""
    text = page.read_text(encoding="utf-8")
    found = re.findall(r"^ *```(?:sh|bash)\n(.*?)^ *```$", text, re.MULTILINE | re.DOTALL)
    return [line for block in found for line in block.replace("\\\n", " ").splitlines()]


def split(line: str) -> list[list[str]]:
    """A line's commands, which && parts; without comments and pipes."""
    words = shlex.split(line, comments=True)
    commands: list[list[str]] = [[]]
    for word in words:
        if word in ("&&", "|", ";"):
            commands.append([])
        else:
            commands[-1].append(word)
    return [command for command in commands if command]


def inline(page: Path) -> list[str]:
    """Return what a page's sentences and tables have in backticks."""
    text = re.sub(r"^ *```.*?^ *```$", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    return [" ".join(each.split()) for each in re.findall(r"(?<!`)`([^`]+)`(?!`)", text)]


def questions() -> list[str]:
    """The commands of the table of questions."""
    rows = re.findall(r"^\| .*\? \| (.*) \|$", (ROOT / "docs/questions.md").read_text(), re.M)
    return [words for row in rows for words in re.findall("`([^`]+)`", row)]


@pytest.fixture
def compose(door, hydra_here, monkeypatch):
    """Compose a command line of `fmnist_lab.run`; nothing is trained."""
    (hydra_here / "images.csv").write_text("3\n")
    for name in ("audit/leaked_images.csv", "audit/suspect_labels.csv"):
        (hydra_here / name).parent.mkdir(exist_ok=True)
        (hydra_here / name).write_text("index,split\n3,train\n4,test\n")
    (hydra_here / "own").mkdir()
    (hydra_here / "own/config.yaml").write_text("trainer: {epochs: 3}\n")
    (hydra_here / "conf").symlink_to(ROOT / "examples/conf")
    (hydra_here / "experiments").symlink_to(ROOT / "experiments")
    monkeypatch.syspath_prepend(ROOT / "examples")
    for cluster in ("slurm.Slurm", "ray_cluster.RayCluster"):
        # It would ask the cluster.
        monkeypatch.setattr(f"fmnist_lab.sweep.launchers.{cluster}.check", lambda *_: None)

    def call(words: list[str]) -> None:
        small = []
        for word in words:
            for usual, other in INSTEAD.items():
                word = word.replace(usual, other)
            small += word.split(" ")
        if "tracking=server" in small:
            monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
        is_sweep = "-m" in small
        assert door(*small, *([] if is_sweep else ["--cfg", "job"])) == 0, small
        assert door.swept or not is_sweep or "dry_run=true" in small, small

    return call


def apps() -> dict[str, App]:
    from fmnist_lab import audit, predict
    from fmnist_lab.benchmark.__main__ import app as benchmark
    from fmnist_lab.runs.__main__ import app as runs

    return {"runs": runs, "predict": predict.app, "audit": audit.app, "benchmark": benchmark}


def parse(app: App, words: list[str], *, whole: bool) -> None:
    """Have a program read its words; a mention in a sentence may leave out what it needs."""
    words = [word for word in words if word != "…"]
    if "--help" in words:
        return
    with contextlib.nullcontext() if whole else contextlib.suppress(MissingArgumentError):
        app.parse_args(words, exit_on_error=False, print_error=False)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_each_command_of_a_page_is_one(page, compose):
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = extras["optional-dependencies"]
    for command in (command for line in blocks(page) for command in split(line)):
        program, *words = command
        if program == "fmnist-lab":
            program, words = "python", ["-m", f"fmnist_lab.{words[0]}", *words[1:]]
        if program == "python" and words[0] == "-m" and words[1].startswith("fmnist_lab."):
            door, *words = words[1].removeprefix("fmnist_lab."), *words[2:]
            if door == "run":
                compose(words)
            else:
                parse(apps()[door], words, whole=True)
        elif program == "pip":
            assert words[0] == "install"
            for named in re.findall(r"\[(.*?)\]", " ".join(words)):
                assert set(named.split(",")) <= set(extras), named
        elif program in ("python", "python3"):
            module = words[1] if words[0] == "-m" else words[0]
            assert list(ROOT.glob(f"examples/{module}")) or find_spec(module), module
        else:
            assert program in {*OURS, *OTHERS, "."}, command


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_each_command_in_a_sentence_is_one(page):
    known = apps()
    for text in inline(page):
        words = text.replace("fmnist_lab.", "").removeprefix("python -m ").split()
        if words[0] in known and len(words) > 1 and re.match(r"[-\w]+$", words[1]):
            with contextlib.suppress(ValueError):  # quotes that go on after the code
                words = shlex.split(" ".join(words))
            parse(known[words[0]], words[1:], whole=False)


def test_each_answer_to_a_question_is_composed(compose):
    found = questions()
    assert len(found) > 20
    for words in found:
        if not words.startswith("runs "):
            compose(shlex.split(words))
