"""The pages about the Python API and the notebooks: their code runs, their commands exist."""

import json
import re
import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from textwrap import dedent

import pytest

import fmnist_lab
from fmnist_lab import api

ROOT = Path(fmnist_lab.__file__).parents[1]
PAGES = ("tutorial.md", "tutorial.ko.md", "python.md")
EVERY = [
    *sorted(ROOT.glob("*.md")),
    *sorted(ROOT.glob("docs/*.md")),
    *sorted(ROOT.glob("experiments/**/*.md")),
]
NOTEBOOKS = ("tutorial", "study")
# Few images, few epochs, in this process: every word that is put in comes first, so that a page's
# own words still count.
SMALL = '"data.train_limit=2000", "data.test_limit=1000", '
SMALLER = {
    "lab.run(": f"lab.run({SMALL}",
    "lab.sweep(": f"lab.sweep({SMALL}",
    ', "hydra/launcher=local_cores"': "",
    "trainer.epochs=20": "trainer.epochs=3",
    "trainer.epochs=5,20": "trainer.epochs=2,3",
    "trainer.epochs=10": "trainer.epochs=2",
    "trainer.epochs=5": "trainer.epochs=2",
    "seed=range(5)": "seed=range(2)",
    "epochs=5)": "epochs=1)",
    "model.hidden_units=256": "model.hidden_units=16",
}

pytestmark = pytest.mark.skipif(not (ROOT / "docs").exists(), reason="not run from a checkout")


def text_of(page: str) -> str:
    return (ROOT / "docs" / page).read_text(encoding="utf-8")


def blocks(page: str, language: str) -> list[str]:
    """The code blocks of a language on a page."""
    fence = rf"^```{language}\n(.*?)^```$"
    return re.findall(fence, text_of(page), re.MULTILINE | re.DOTALL)


def commands(page: str) -> list[list[str]]:
    lines = "".join(blocks(page, "sh")).replace("\\\n", " ").splitlines()
    return [shlex.split(line) for line in lines if line.strip()]


def code_of(notebook: str) -> list[dict]:
    cells = json.loads((ROOT / "examples" / f"{notebook}.ipynb").read_text(encoding="utf-8"))
    return cells["cells"]


def test_both_languages_have_the_same_code():
    for language in ("sh", "python", "text"):
        assert blocks("tutorial.md", language) == blocks("tutorial.ko.md", language)
    pictures = [re.findall(r"\]\((figures/.*?)\)", text_of(page)) for page in PAGES[:2]]
    assert pictures[0] == pictures[1]
    assert len(pictures[0]) > 5
    headings = [re.findall(r"^## (\d+)\. ", text_of(page), re.MULTILINE) for page in PAGES[:2]]
    assert headings[0] == headings[1] == [str(number) for number in range(1, 11)]


@pytest.mark.parametrize("page", EVERY, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_a_page_links_to_is_there(page):
    """On a page of the repository, a link is relative to the page's own folder."""
    text = page.read_text(encoding="utf-8")
    for link in re.findall(r"\]\((?!https?:)([^)#]+)", text):
        assert (page.parent / link).is_file(), link


def test_pictures_of_the_tutorial_are_small():
    for link in re.findall(r"\]\((figures/.*?)\)", text_of("tutorial.md")):
        assert (ROOT / "docs" / link).stat().st_size < 100_000, link


def test_the_front_page_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) < 150


@pytest.mark.skipif(find_spec("sphinx") is None, reason="the extra docs is not installed")
def test_the_site_is_built_without_a_warning(tmp_path):
    """It has every page, and every link from one page to another leads somewhere."""
    site = tmp_path / "site"
    words = f"-m sphinx -q -W --keep-going -c docs -d {tmp_path}/trees . {site}".split()
    built = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True)
    assert (built.returncode, built.stdout, built.stderr) == (0, "", "")
    pages = {page for page in EVERY if page.name != "README.md" or "experiments" in page.parts}
    made = {site / page.relative_to(ROOT).with_suffix(".html") for page in pages}
    assert made <= set(site.rglob("*.html"))
    assert "docs/index.html" in (site / "index.html").read_text()
    reference = (site / "docs/api.html").read_text()
    for name in api.__all__:
        assert f'id="fmnist_lab.api.{name}"' in reference
    assert '"overfit"' in (site / "searchindex.js").read_text()


def test_each_command_of_the_tutorial_is_one(door):
    """Those that make runs are composed; of the others, the slow test below runs each."""
    found = commands("tutorial.md")
    assert len(found) > 8
    for words in found:
        assert words[:2] == ["python", "-m"], words
        module, *rest = words[2:]
        if module != "fmnist_lab.run":
            assert module in ("fmnist_lab.runs", "fmnist_lab.predict")
        elif "--cfg" in rest or "dry_run=true" in rest:
            assert door(*rest) == 0, rest
        elif "-m" in rest:
            assert door(*rest) == 0, rest
            assert door.swept, rest
        else:
            door.config(*rest)


@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_a_notebook_is_kept_without_outputs(notebook):
    cells = code_of(notebook)
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
    assert (ROOT / "examples" / f"{notebook}.ipynb").stat().st_size < 1_000_000
    assert notebook != "study" or len(code) == 10


@pytest.mark.parametrize("notebook", NOTEBOOKS)
@pytest.mark.parametrize(
    ("files", "source", "installed"),
    [
        (("../fmnist_lab/__init__.py",), "", ".."),
        (("fmnist_lab-0.1.0-py3-none-any.whl",), "", "fmnist_lab-0.1.0-py3-none-any.whl"),
        (
            ("fmnist_lab-0.1.0-py3-none-any.whl",),
            "git+https://host/me/lab",
            "git+https://host/me/lab",
        ),
        ((), "", None),
    ],
)
def test_the_first_cell_installs_what_there_is(
    tmp_path, monkeypatch, notebook, files, source, installed
):
    from IPython.core.inputtransformer2 import TransformerManager

    (here := tmp_path / "examples").mkdir()
    monkeypatch.chdir(here)
    for file in files:
        (here / file).parent.mkdir(exist_ok=True)
        (here / file).touch()
    cell = next(each for each in code_of(notebook) if each["cell_type"] == "code")
    code = "".join(cell["source"]).replace('SOURCE = ""', f'SOURCE = "{source}"')
    asked: list[str] = []
    found: list[str] = []

    class Shell:
        def run_line_magic(self, magic, words):
            asked.append(magic)
            found.append(words.replace("{found[0]}", names["found"][0]))

    names: dict = {"get_ipython": Shell}
    code = TransformerManager().transform_cell(code)
    exec(code, names)  # fmnist_lab is installed here
    assert found == []
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    if installed is None:
        with pytest.raises(ModuleNotFoundError, match="put its repository's address into SOURCE"):
            exec(code, names)
    else:
        exec(code, names)
        assert (asked, found) == (["pip"], [f"install --quiet {installed}"])


@pytest.mark.slow
@pytest.mark.parametrize("page", [PAGES[0], PAGES[2], "label_noise.md", "../README.md"])
def test_the_code_of_a_page_runs(backend, real_data, hydra_here, page, monkeypatch, capsys):
    """In one namespace, from top to bottom; a value behind a line's # is what the line gives."""
    (hydra_here / "examples").symlink_to(ROOT / "examples")
    names: dict[str, object] = {}
    checked = 0
    for block in blocks(page, "python"):
        small = block
        for usual, smaller in SMALLER.items():
            small = small.replace(usual, smaller)
        exec(compile(small, page, "exec"), names)
        for line in block.splitlines():
            value, _, told = line.partition("  # ")
            if re.match(r"[\[(\d']", told) and told != "(10000, 10)" and not line.startswith(" "):
                if "," in told and re.match(r"\(\w+, \w+, ", told):
                    continue  # words, not numbers
                assert repr(eval(value, names)) == told, line
                checked += 1
    assert page != "tutorial.md" or checked > 6
    if page != "tutorial.md":
        return
    from fmnist_lab import predict
    from fmnist_lab.runs.__main__ import app

    for words in commands(page):
        if words[2] == "fmnist_lab.runs":
            app(words[3:], result_action="return_value")
        elif words[2] == "fmnist_lab.predict":
            predict.app(words[3:], result_action="return_value")
    assert (hydra_here / "report" / "report.html").is_file()
    assert (hydra_here / "predicted.png").is_file()


PARAMETERS = {
    "tutorial": 'EPOCHS = 1\nSMALL = ("data.train_limit=2000", "data.test_limit=1000")',
    "study": 'EPOCHS = 1\nSEEDS = 2\nSMALL = ("data.train_limit=1000", "data.test_limit=500")',
}


@pytest.mark.slow
@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_a_notebook_runs(real_data, tmp_path, monkeypatch, notebook):
    import nbformat
    from jupyter_client.manager import AsyncKernelManager
    from nbclient import NotebookClient

    for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    (tmp_path / "JUPYTER_RUNTIME_DIR").mkdir()
    (folder := tmp_path / "work").mkdir()
    made = nbformat.read(ROOT / "examples" / f"{notebook}.ipynb", as_version=4)
    (parameters,) = [cell for cell in made.cells if "parameters" in cell.metadata.get("tags", [])]
    parameters.source = dedent(PARAMETERS[notebook])
    kernel = AsyncKernelManager(kernel_name="python3", ip="127.0.0.1")
    where = {"metadata": {"path": str(folder)}}
    NotebookClient(made, km=kernel, timeout=300, resources=where).execute()
    nbformat.write(made, tmp_path / "executed.ipynb")
    code = [cell for cell in made.cells if cell.cell_type == "code"]
    assert code[0].outputs == []  # fmnist_lab is installed
    shown = [part for cell in code for part in cell.outputs if part.output_type != "stream"]
    assert sum("image/png" in part.get("data", {}) for part in shown) >= 1
    assert not [part for cell in code for part in cell.outputs if part.get("name") == "stderr"]
    texts = [
        part.get("text") or part.data.get("text/html", "") for cell in code for part in cell.outputs
    ]
    assert "\x1b[" not in "".join(texts)  # nothing that only a terminal understands
    assert {"mlflow.db", "mlruns"} <= {path.name for path in folder.iterdir()}
