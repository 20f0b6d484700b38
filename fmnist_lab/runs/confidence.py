"""`confidence`: how far models can be trusted to know when they do not know."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fmnist_lab import tracking
from fmnist_lab.errors import UserError, cannot_write, reported
from fmnist_lab.runs.reproduce import rebuild
from fmnist_lab.runs.sides import parted, plain, show_sides, side_of
from fmnist_lab.system.terminal import printout
from fmnist_lab.texts import counted

if TYPE_CHECKING:
    import pandas as pd

    from fmnist_lab.jobs.confidence import Confidence
    from fmnist_lab.studies.differences import Side

EXPLAINED = (
    "All on the test images; ± is the 95 % interval of a mean over runs, and [ ] the 95 % "
    "bootstrap interval of one run. The temperature and the threshold are fitted on the run's "
    "held-out images. The floor is the error that a perfectly calibrated model would show by "
    "chance; an error is at it if chance alone makes one in forty higher. Conformal sets: mean "
    "over 20 splits of the test images, and the least and the most. AUROC: how often a test image "
    "gets a higher score than another picture does; 0.5 is chance."
)


def confidence(
    *runs: str,
    coverage: float = 0.9,
    output: Path | None = None,
    as_json: Annotated[bool, Parameter(name="--json")] = False,
    allow: Annotated[tuple[str, ...], Parameter(negative="")] = (),
    store: str | None = None,
    experiment: str | None = None,
) -> None:
    """Say how far the confidence of logged models can be trusted, before and after calibration.

    Also what abstaining buys, how large conformal sets are, and how well confidence tells
    handwritten digits, noise and upside-down clothes from clothes.

    Args:
        runs: Sweeps, runs, and key=value that narrow them.
        coverage: Share of the images to answer, and of conformal sets to hold the true class.
        output: Folder for confidence.csv (one row per run), reliability.png and risk_coverage.png.
        as_json: Print JSON, one object per run.
        allow: A function or class of your own that a run's config names; may be repeated.
        store: MLflow's tracking URI; left out, $MLFLOW_TRACKING_URI or mlflow.db in this folder.
        experiment: The experiment to look into if no run is named; left out, MLflow's
            $MLFLOW_EXPERIMENT_NAME or $MLFLOW_EXPERIMENT_ID, or fmnist_lab.
    """
    with reported():
        if not 0 < coverage < 1:
            raise UserError(
                f"--coverage: received {coverage:g}, expected a share between 0 and 1, such as 0.9"
            )
        place = tracking.Store.locate(store, for_writing=False)
        side = side_of(place, parted(runs), experiment)
        found = _measure(place, side, coverage, allow)
        if as_json:
            every = [{"run_id": run, **found[run].figures} for run in side.ids]
            print(json.dumps(plain(every), indent=2))
        else:
            console = printout(piped=120)
            show_sides(console, [side], ["of"])
            console.print()
            console.print(_table(side, found, coverage))
            console.print()
            console.print(Text(EXPLAINED))
            for line in _judged(side, found):
                console.print(Text(line))
        if output is not None:
            _write(output, side, found, printout())


def _measure(
    store: tracking.Store, side: Side, coverage: float, allow: tuple[str, ...]
) -> dict[str, Confidence]:
    """Return the findings on each run's model, by the run's id."""
    configs = {}
    for run in side.ids:
        old = tracking.look_up(store, run)
        configs[run] = rebuild(store, old, allow)
    from fmnist_lab.jobs.confidence import measure
    from fmnist_lab.training import runtime

    runtime.start()
    return {run: measure(store, run, config, coverage) for run, config in configs.items()}


def _settings(side: Side) -> dict[str, list[str]]:
    """Return the ids of the runs of each setting, by the setting's name."""
    from fmnist_lab.studies import frames

    study = side.study
    short = frames.short_names(study.parameters)
    ids = study.used["run_id"].tolist()
    named = {}
    for setting, rows in frames.rows_of(study.used, study.parameters).items():
        pairs = [(n, v) for n, v in zip(study.parameters, setting, strict=True) if v is not None]
        choices = [frames.shown(value, name) for name, value in pairs if name in frames.CHOICES]
        values = choices + [
            f"{short[name]} {frames.shown(value, name)}"
            for name, value in pairs
            if name not in frames.CHOICES
        ]
        named[", ".join(values) or "all runs"] = [ids[row] for row in rows]
    return named


def _table(side: Side, found: dict[str, Confidence], coverage: float) -> Table:
    """Return a table with a row for each figure and a column for each setting."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("", no_wrap=True)
    settings = _settings(side)
    for name in settings:
        table.add_column(Text("this run" if len(side.ids) == 1 else name), justify="right")
    for title, said in _rows(coverage):
        cells = [said([found[run].figures for run in runs]) for runs in settings.values()]
        if any(cell != "-" for cell in cells):
            table.add_row(*map(Text, [title, *cells]))
    return table


Said = Callable[[list[dict[str, float]]], str]


def _rows(coverage: float) -> list[tuple[str, Said]]:
    """Return the title of each row, and what says its cell by the figures of a setting's runs."""
    from fmnist_lab.jobs.confidence import OTHERS

    share = f"{100 * coverage:g} %"
    rows: list[tuple[str, Said]] = [
        ("temperature", partial(_mean, "calibration/temperature", digits=2)),
        ("calibration error (ECE)", partial(_mean, "calibration/ece")),
        ("  its floor", partial(_mean, "calibration/floor")),
        ("ECE with the temperature", partial(_mean, "calibration/ece_scaled")),
        ("  its floor", partial(_mean, "calibration/floor_scaled")),
        (f"sets at {share}: with the true class", partial(_mean, "conformal_splits/coverage")),
        ("  classes in a set", partial(_mean, "conformal_splits/size", digits=2)),
        ("adaptive sets: with the true class", partial(_mean, "conformal_aps/coverage")),
        ("  classes in a set", partial(_mean, "conformal_aps/size", digits=2)),
        ("accuracy if all are answered", partial(_mean, "accuracy/test")),
        (f"  if the surest {share} are", partial(_mean, "abstaining/accuracy")),
        ("  which are, in fact", partial(_mean, "abstaining/coverage")),
    ]
    for name, words in OTHERS.items():
        rows += [
            (f"AUROC {words}: softmax", partial(_mean, f"auroc_softmax/{name}")),
            ("  energy", partial(_mean, f"auroc_energy/{name}")),
        ]
    return rows


def _mean(name: str, figures: list[dict[str, float]], digits: int = 4) -> str:
    """Return the mean of a figure over runs, with its interval; "-" if none has it."""
    from fmnist_lab.studies import summary

    values = [each[name] for each in figures if not math.isnan(each[name])]
    if not values:
        return "-"
    if len(values) == 1:
        ends = [figures[0].get(f"{name}_{end}", math.nan) for end in ("low", "high")]
        between = "" if math.isnan(ends[0]) else f" [{ends[0]:.{digits}f}, {ends[1]:.{digits}f}]"
        return f"{values[0]:.{digits}f}{between}"
    known = summary.interval(values)
    return f"{known.mean:.{digits}f} ± {known.high - known.mean:.{digits}f}"


def _judged(side: Side, found: dict[str, Confidence]) -> list[str]:
    """Return a sentence for each setting on what the temperature does to the error."""
    said = []
    for name, runs in _settings(side).items():
        figures = [found[run].figures for run in runs]
        fitted = [each for each in figures if not math.isnan(each["calibration/ece_scaled"])]
        if not fitted:
            said.append(f"{name}: no images, or too few, were held out to fit a temperature on.")
            continue
        halved, at_floor, already, neither = 0, 0, 0, 0
        for each in fitted:
            before, after = each["calibration/ece"], each["calibration/ece_scaled"]
            holds = (
                after <= before / 2,
                after <= each["calibration/floor_scaled_high"],
                before <= each["calibration/floor_high"],
            )
            halved, at_floor, already = halved + holds[0], at_floor + holds[1], already + holds[2]
            neither += not any(holds)
        said.append(
            f"{name}: of {counted(len(fitted), 'run')}, the temperature halves the ECE in {halved} "
            f"and leaves it at its floor in {at_floor}; without it, {already} had theirs at the "
            f"floor; none of these holds for {neither}."
        )
    return said


def _write(folder: Path, side: Side, found: dict[str, Confidence], console: Console) -> None:
    """Write the table of all runs, and the two pictures of the settings."""
    from fmnist_lab import figures

    settings = _settings(side)
    first = {name: found[runs[0]] for name, runs in settings.items()}
    diagrams = {name: (each.before, each.after) for name, each in first.items()}
    curves = {name: [found[run].curve for run in runs] for name, runs in settings.items()}
    drawn: dict[str, Any] = {
        "reliability.png": partial(figures.reliability_diagrams, diagrams),
        "risk_coverage.png": partial(figures.risk_coverage, curves),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _frame(side, found).to_csv(folder / "confidence.csv", index=False)
        for file, draw in drawn.items():
            draw().savefig(folder / file)
    except OSError as error:
        raise cannot_write(folder, error) from error
    console.print(f"written to {folder}: confidence.csv, {', '.join(drawn)}")


def _frame(side: Side, found: dict[str, Confidence]) -> pd.DataFrame:
    """Return the figures as a table, one row per run: id, varied parameters, seed, figures."""
    import pandas as pd

    used = side.study.used
    columns = ["run_id", *side.study.parameters, *(["seed"] if "seed" in used else [])]
    measured = pd.DataFrame([found[run].figures for run in used["run_id"]], index=used.index)
    return pd.concat([used[columns], measured], axis=1)
