"""The studies in experiments/: their commands compose, their numbers are those of the runs."""

import re
import shlex
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import OmegaConf
from scipy.stats import binomtest

from fmnist_lab import config
from fmnist_lab.config import naming
from fmnist_lab.evaluation.statistics import Interval
from fmnist_lab.studies import frames, summary
from fmnist_lab.sweep import plan

FOLDER = Path(__file__).parent.parent / "experiments"
STUDIES = sorted(file.parent.name for file in FOLDER.glob("*/results.csv"))
# Their results are those of the winner and of what it is compared with.
SEARCHES = sorted(file.parent.name for file in FOLDER.glob("*/trials.csv"))
METRICS = [
    *(
        f"{name}/{part}"
        for name in ("accuracy", "loss")
        for part in ("test", "train", "gap", "fit")
    ),
    *("accuracy/train_clean", "accuracy/gap_clean", "loss/gap_clean", "accuracy/validation"),
    *(f"mislabelled/{part}" for part in ("memorised", "seen_through", "by_mistake")),
]
CONFIDENCE = ("calibration/", "conformal", "abstaining/", "auroc_")
# What reports write beside the runs.
TABLES = ("summary.csv", "curves.csv", "bias_variance.csv", "variance.csv")
NUMBER = re.compile(r"(?<![\w./:])[+-]?\d\.\d{3,}(?!\w|\.\d)")
# What is measured is quoted under these headings; elsewhere stand settings and others' numbers.
MEASURED = ("Finding", "Cost")


@pytest.fixture(params=STUDIES)
def name(request) -> str:
    return request.param


def readme(name: str) -> str:
    return (FOLDER / name / "README.md").read_text()


def results(name: str) -> pd.DataFrame:
    """The runs of a study, with what `runs confidence` has found of each where it was asked."""
    runs, asked = pd.read_csv(FOLDER / name / "results.csv"), FOLDER / name / "confidence.csv"
    if not asked.exists():
        return runs
    found = pd.read_csv(asked)
    assert sorted(found["run_id"]) == sorted(runs["run_id"])
    earlier = [column for column in runs if column.startswith(CONFIDENCE)]
    new = [column for column in found if column.startswith(CONFIDENCE)]
    return runs.drop(columns=earlier).merge(found[["run_id", *new]], on="run_id")


def trials(name: str) -> pd.DataFrame:
    return pd.read_csv(FOLDER / name / "trials.csv")


def section(text: str, title: str) -> str:
    found = re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    return found[1] if found else ""


def commands(text: str) -> list[list[str]]:
    """The words of each quoted command that makes runs."""
    lines = re.findall(r"^python -m fmnist_lab\.run (.*)$", text, re.MULTILINE)
    return [shlex.split(line) for line in lines]


def jobs(words: list[str]) -> Iterator[config.Config]:
    """The checked config of each job of a sweep's command."""
    with initialize_config_dir(str(config.conf_dir()), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        given = [word for word in words if word != "-m"]
        whole = loader.load_configuration("config", given, RunMode.MULTIRUN)
        # A search has no list of jobs; its winner's trainings have a command of their own.
        for job in plan.plan(whole).jobs:
            composed = loader.load_sweep_config(whole, list(job))
            own = OmegaConf.masked_copy(composed, [key for key in composed if key != "hydra"])
            yield config.validate(OmegaConf.to_container(own, resolve=True))


def spoken(value: float, digits: int) -> set[str]:
    """A number as it may be written, rounded to so many digits after the point."""
    return {f"{value:.{digits}f}", f"{value:+.{digits}f}", f"{abs(value):.{digits}f}"}


def sayable(runs: pd.DataFrame, digits: int) -> set[str]:
    """All numbers that may be said of runs: each one's, and mean and spread of each setting."""
    said: set[str] = set()
    parameters = [each for each in summary.varied(runs) if each in runs]
    settings = (
        [part for _, part in runs.groupby(parameters, dropna=False)] if parameters else [runs]
    )
    confidence = [name for name in runs if name.startswith(CONFIDENCE)]
    for metric in [*METRICS, *confidence]:
        if metric not in runs:
            continue
        for value in runs[metric]:
            said |= spoken(value, digits)
        for part in settings:
            values = part[metric]
            said |= spoken(values.std(), digits) | spoken(values.max() - values.min(), digits)
            said |= told(summary.interval(values), digits)
    for one, other in pairs(settings, parameters):
        matched = one.merge(other, on=seeds_in(runs), suffixes=("", "_other"))
        for metric in METRICS if len(matched) > 1 else ():
            if metric in runs:
                differences = matched[metric] - matched[f"{metric}_other"]
                said |= told(summary.interval(differences), digits)
    return said


def told(interval: Interval, digits: int) -> set[str]:
    half = (interval.high - interval.low) / 2
    values = (interval.mean, interval.low, interval.high, half)
    return set[str]().union(*(spoken(value, digits) for value in values))


def seeds_in(runs: pd.DataFrame) -> list[str]:
    return [name for name in frames.SEEDS if name in runs and runs[name].notna().all()]


def pairs(
    settings: list[pd.DataFrame], parameters: list[str]
) -> Iterator[tuple[pd.DataFrame, pd.DataFrame]]:
    """Settings that differ in one parameter, of studies of few settings."""
    if len(settings) > 12 or len(parameters) < 2:
        return
    for one, other in combinations(settings, 2):
        first, second = (
            part[parameters].astype(object).fillna("").astype(str).iloc[0] for part in (one, other)
        )
        if (first != second).sum() == 1:
            yield one, other


def in_tables(name: str, digits: int) -> set[str]:
    """The numbers of the other tables of a study's report, and half of their intervals."""
    said: set[str] = set()
    for file in TABLES:
        if (FOLDER / name / file).is_file():
            table = pd.read_csv(FOLDER / name / file)
            for column in table.select_dtypes("number"):
                metric, _, end = column.rpartition("/")
                values = [table[column]]
                if end == "high":
                    values.append((table[column] - table[f"{metric}/low"]) / 2)
                for each in values:
                    said |= set[str]().union(*(spoken(value, digits) for value in each))
    return said


def test_its_parts_are_there(name):
    text = readme(name)
    assert text.startswith("# ")
    for title in ("Question", "Command", "Expectation", *MEASURED):
        assert section(text, title).strip(), f"{name} says nothing under {title}"
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", text)
    assert {"results.csv", "summary.csv"} <= set(links)
    assert any(link.endswith(".png") for link in links)
    for link in links:
        assert (FOLDER / name / link).is_file(), f"{name} links to {link}, which is not there"


def comparable(row: dict[str, Any]) -> dict[str, Any]:
    """Parameters with numbers as numbers; the launcher may decide the number of threads."""
    row = {key: value for key, value in row.items() if key == "seed" or frames.is_parameter(key)}
    row.pop("trainer.threads", None)
    # A report gives runs without wrong labels a share of 0; their params have none.
    if float(row.get(frames.NOISE, 1)) == 0:
        row.pop(frames.NOISE)
    numbers = re.compile(r"[+-]?[\d.]+(e[+-]?\d+)?")
    # A report takes a list of one for the one.
    texts = {key: re.sub(r"^\[(\d+)\]$", r"\1", str(value)) for key, value in row.items()}
    return {key: float(text) if numbers.fullmatch(text) else text for key, text in texts.items()}


# Composing all jobs of a study takes seconds.
@pytest.mark.parametrize(
    "name",
    [
        study if study == "tutorial" else pytest.param(study, marks=pytest.mark.slow)
        for study in STUDIES
    ],
)
def test_its_command_is_what_the_runs_were_made_with(name):
    kept = pd.read_csv(FOLDER / name / "results.csv", dtype=str)
    made = [comparable(row.dropna().to_dict()) for _, row in kept.iterrows()]
    asked = [each for words in commands(section(readme(name), "Command")) for each in jobs(words)]
    # A parameter may have come since, with a default that does what was done before.
    wanted = [
        {key: value for key, value in comparable(naming.params(each)).items() if key in kept}
        for each in asked
    ]

    def ordered(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return sorted(rows, key=lambda row: str(sorted(row.items())))

    assert ordered(made) == ordered(wanted)


def test_its_runs_are_finished_and_of_code_that_was_committed(name):
    runs = results(name)
    assert set(runs["status"]) == {"FINISHED"}
    assert not runs["dirty"].any()
    assert runs["commit"].str.fullmatch("[0-9a-f]{40}").all()
    assert runs["run_id"].is_unique


def test_its_numbers_are_those_of_the_runs(name):
    text, runs = readme(name), results(name)
    published = set(NUMBER.findall(section(text, "Expectation")))
    tried = trials(name).select_dtypes("number").to_numpy().ravel() if name in SEARCHES else []
    known: dict[int, set[str]] = {}
    for title in MEASURED:
        said = section(text, title)
        # Sums may be quoted if they are right.
        for one, sign, other, result in re.findall(
            "(\\d\\.\\d+) ([+\N{MINUS SIGN}]) (\\d\\.\\d+) = (\\d\\.\\d+)", said
        ):
            right = float(one) + float(other) * (1 if sign == "+" else -1)
            assert f"{right:.{len(result) - 2}f}" == result
        said = re.sub(r" = \d\.\d+", "", said)
        for number in NUMBER.findall(said):
            digits = len(number.partition(".")[2])
            if digits not in known:
                known[digits] = published | sayable(runs, digits) | in_tables(name, digits)
                known[digits] |= {text for value in tried for text in spoken(value, digits)}
            assert number in known[digits], f"{name} quotes {number}"


@pytest.mark.parametrize("name", SEARCHES)
def test_the_winner_of_a_search_is_its_best_trial(name):
    text, tried, runs = readme(name), trials(name), results(name)
    (search,) = [
        words for words in commands(section(text, "Command")) if f"experiment={name}" in words
    ]
    with initialize_config_dir(str(config.conf_dir()), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        whole = loader.load_configuration("config", search[1:], RunMode.MULTIRUN)
    assert set(whole.hydra.sweeper.params) <= set(tried)
    best = tried[tried["status"] == "FINISHED"].nlargest(1, "accuracy/validation").iloc[0]
    chosen = {axis: best[axis] for axis in whole.hydra.sweeper.params}
    finals = runs[
        [all(row[axis] == value for axis, value in chosen.items()) for _, row in runs.iterrows()]
    ]
    assert len(finals) == whole.hydra.sweeper.finals
    # None of its seeds is the search's own.
    assert set(tried["seed"]).isdisjoint(finals["seed"])
    # A trial that was paused is no failure, and one that was refused is not counted as trained.
    assert set(tried["status"]) <= {"FINISHED", "PAUSED", "FAILED"}


def test_its_counts_are_those_of_the_runs(name):
    text, runs = readme(name), results(name)
    published = re.search(r"test accuracy (\d\.\d+)", section(text, "Expectation"))
    claims = r"(\d+) of (\d+) seeds have a lower test accuracy than the published"
    for count, total in re.findall(claims, section(text, "Finding")):
        lower = (runs["accuracy/test"] < float(published[1])).sum()
        assert (int(count), int(total)) == (lower, len(runs))


def test_the_summary_is_that_of_the_runs(name):
    kept = pd.read_csv(FOLDER / name / "summary.csv")
    fresh = summary.summarize(results(name)).reset_index(drop=True)
    for column in fresh.columns.intersection(kept.columns):
        if column.endswith("/mean"):
            known, found = (sorted(each[column].dropna()) for each in (kept, fresh))
            assert known == pytest.approx(found)


def test_the_index_lists_every_study():
    text = (FOLDER / "README.md").read_text()
    listed = set(re.findall(r"\]\((\w+)/README\.md\)", text))
    assert listed == {file.parent.name for file in FOLDER.glob("*/README.md")}
    for picture in re.findall(r"!\[[^]]+\]\(([^)]+)\)", text):
        assert (FOLDER / picture).is_file()
    quoted = r"\[[^]]+\]\((\w+)/README\.md\).*?\*\*(\d\.\d+)"
    assert len(re.findall(quoted, text)) > 5
    for study_name, number in re.findall(quoted, text):
        assert number in readme(study_name), f"the index quotes {number}"


MLP = "mlp, batch 32, float32"


def medians_of(file: Path) -> dict[str, list[tuple[str, str, str]]]:
    """Of each case, each contender with its median seconds and ratio to ours, as quoted."""
    timed = pd.read_csv(file)
    names = timed["network"] + ", batch " + timed["batch_size"].astype(str)
    beside = timed["busy"].map(lambda count: f", {count} busy beside" if count else "")
    timed["case"] = names + ", " + timed["precision"] + beside
    ours = timed[timed["contender"] == "fmnist_lab"].set_index(["case", "round"])["seconds"]
    timed["ratio"] = timed["seconds"] / timed.set_index(["case", "round"]).index.map(ours)
    medians = timed.groupby(["case", "contender"], sort=False)[["seconds", "ratio"]].median()
    quoted: dict[str, list[tuple[str, str, str]]] = {}
    for (case, name), row in medians.iterrows():
        quoted.setdefault(case, []).append((name, f"{row['seconds']:.3f}", f"{row['ratio']:.2f}"))
    return quoted


def test_the_speeds_are_those_that_were_measured():
    text = readme("speed")
    row = r"^\| (.+?) \| (\d+\.\d+) \| (\d+\.\d+) \|$"
    tables = re.findall(r"^\*\*(.+)\*\*\n\n((?:\|.*\n)+)", text, re.MULTILINE)
    quoted = [(case, re.findall(row, table, re.MULTILINE)) for case, table in tables]
    first, busy, other = (
        list(medians_of(FOLDER / "speed" / f"{name}.csv").items())
        for name in ("epochs", "busy", "zen4")
    )
    assert quoted == [*first, *busy, *other]
    square, own = (f"{float(ratio) * 100:.0f} %" for *_, ratio in dict(first)[MLP][-2:])
    assert f"at {square} of the rate of large square" in text
    assert f"at {own} of that of the network's own" in text


def table(name: str, heading: str) -> list[list[str]]:
    """The cells of the table in a study's finding whose first column has this heading."""
    pattern = rf"^\| {heading} .*\n\|[-:| ]+\n((?:\|.*\n)+)"
    found = re.search(pattern, section(readme(name), "Finding"), re.MULTILINE)
    assert found, f"{name} has no table by {heading}"
    rows = [line.strip("| ").split("|") for line in found[1].splitlines()]
    return [[cell.strip() for cell in row] for row in rows]


def test_the_shares_of_variance_are_those_that_were_computed():
    kept = pd.read_csv(FOLDER / "variance" / "variance.csv").set_index("source")
    quoted = table("variance", "source")
    assert [source for source, *_ in quoted] == list(kept.index)
    for source, *cells in quoted:
        for metric, cell in zip(("accuracy/test", "accuracy/gap"), cells, strict=True):
            ends = [f"{metric}/{end}" for end in ("mean", "low", "high")]
            mean, low, high = 100 * kept.loc[source, ends]
            assert cell == f"{mean:.0f} % [{low:.0f}, {high:.0f}]"


def test_the_counts_of_leaked_images_are_those_of_the_lists():
    text = section(readme("leaked_images"), "Finding")
    for distance in ("1.5", "2"):
        listed = pd.read_csv(FOLDER / "leaked_images" / f"near_{distance}.csv")
        counts = listed["split"].value_counts()
        said = f"{counts['test']} test images and {counts['train']:,} training images"
        assert said in " ".join(text.split())


def test_the_counts_of_suspect_labels_are_those_of_the_verdicts():
    text = " ".join(section(readme("suspect_labels"), "Finding").split())
    judged = pd.read_csv(FOLDER / "suspect_labels" / "judged.csv")
    counts = judged["verdict"].value_counts()
    found = binomtest(int(counts["wrong"]), len(judged)).proportion_ci(method="wilson")
    assert f"{counts['wrong']} of the {len(judged)}" in text
    assert f"[{100 * found.low:.0f} %, {100 * found.high:.0f} %]" in text


def test_the_epochs_until_labels_are_known_are_those_of_the_curves():
    curves = pd.read_csv(FOLDER / "random_labels" / "curves.csv")
    is_random = curves["data.random_labels"].astype(str) == "True"
    for width, *cells, _ in table("random_labels", "hidden units"):
        of_width = curves["model.hidden_units"] == int(width.replace(",", ""))
        until = [(share, drawn) for share in (0.9, 0.95) for drawn in (False, True)]
        for (share, drawn), cell in zip(until, cells, strict=True):
            part = curves[of_width & (is_random == drawn)]
            reached = part["epoch"][part["accuracy/train/mean"] >= share]
            assert cell == (str(reached.min()) if len(reached) else "not within 100")
