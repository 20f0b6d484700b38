"""Many runs: as a frame, as curves, compared and reported on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from fmnist_lab import tracking
from fmnist_lab.api.pictures import Pictures
from fmnist_lab.api.record import Predictions, Run
from fmnist_lab.config.nearest import nearest
from fmnist_lab.errors import UserError, raised
from fmnist_lab.system import process
from fmnist_lab.texts import counted

if TYPE_CHECKING:
    import pandas as pd

    from fmnist_lab.api.findings import Comparison, Report
    from fmnist_lab.studies.differences import Side
    from fmnist_lab.studies.summary import Study

# Columns that are no use in a frame.
INTERNAL = ("sweeps", "trial_values", "search")
# The curves that are read if none is named.
CURVES = ("accuracy/train", "accuracy/test", "accuracy/gap")
Condition = str | Callable[[Run], bool]


class Runs(Sequence[Run]):
    """Runs of a store, read once: a sequence of `Run`, and a table.

    `runs[0]` is a run, `runs["h128 e5 s0"]` the one of a name or an id, `runs[:5]` and
    `runs[frame["accuracy/gap"] > 0.05]` are collections.

    Args:
        store: Where they are.
        table: One row per run, as `tracking.find` returns it.
        named: The sweeps and runs by which they were asked for.
    """

    def __init__(
        self, store: tracking.Store, table: pd.DataFrame, named: Sequence[tracking.RunRef] = ()
    ) -> None:
        self._store = store
        self._table = table.reset_index(drop=True)
        self._named = list(named)

    @classmethod
    @process.store_as_found()
    def of_sweep(cls, store: tracking.Store, experiment: str, sweep: str) -> Runs:
        """Return the runs of a sweep, in the order of its jobs.

        Args:
            store: Where it is.
            experiment: The name of its experiment.
            sweep: The id of its parent run.
        """
        from fmnist_lab.tracking import tables

        parent = tracking.look_up(store, sweep)
        return cls(store, tables.members(store, parent), [parent])

    def __len__(self) -> int:
        return len(self._table)

    @overload
    def __getitem__(self, which: int | str) -> Run: ...
    @overload
    def __getitem__(self, which: slice | Iterable[Any]) -> Runs: ...
    def __getitem__(self, which: Any) -> Run | Runs:
        """Return a run by its place, id or name; or runs by a slice, a mask, or places or ids.

        Raises:
            UserError: No run here has that id or name, or several have the name.
        """
        if isinstance(which, str):
            return self._called(which)
        if isinstance(which, slice):
            return self._some(self._table.iloc[which])
        if hasattr(which, "__index__"):
            return Run.of_row(self._store, self._table.iloc[which.__index__()].to_dict())
        wanted = list(which)
        if wanted and isinstance(wanted[0], str):
            places = {run_id: at for at, run_id in enumerate(self._table["run_id"])}
            unknown = [each for each in wanted if each not in places]
            if unknown:
                raise UserError(f"received {unknown[0]}, which is the id of none of these runs")
            return self._some(self._table.iloc[[places[each] for each in wanted]])
        import numpy as np

        if wanted and all(isinstance(each, bool | np.bool_) for each in wanted):
            if len(wanted) != len(self):
                raise UserError(
                    f"received a mask of {len(wanted)} truth values, expected one for each of the "
                    f"{len(self)} runs"
                )
            wanted = [at for at, is_wanted in enumerate(wanted) if is_wanted]
        return self._some(self._table.iloc[wanted])

    def __iter__(self) -> Iterator[Run]:
        return (Run.of_row(self._store, row) for row in self._table.to_dict("records"))

    def _called(self, word: str) -> Run:
        """Return the run of an id, the beginning of an id, or a name."""
        table = self._table
        found = table[(table["name"] == word) | table["run_id"].str.startswith(word)]
        if len(found) != 1:
            problem = f"{counted(len(found), 'run')} here have" if len(found) else "no run here has"
            raise UserError(
                f"received '{word}', which {problem} as name or id; expected one of "
                f"{', '.join(table['name'].head(5))}{', …' if len(table) > 5 else ''}"
            )
        return Run.of_row(self._store, found.iloc[0].to_dict())

    def _some(self, table: pd.DataFrame) -> Runs:
        return Runs(self._store, table, self._named if len(table) == len(self) else ())

    @property
    def run_ids(self) -> list[str]:
        """The ids."""
        return list(self._table["run_id"])

    def frame(self, *columns: str) -> pd.DataFrame:
        """Return one row per run, in their order.

        Args:
            columns: Those to return, missing ones as None; without any, all of them.

        Returns:
            `run_id`, `name`, `status`, `started`, `ended` (UTC) and the like, parameters as numbers
            and texts ("trainer.epochs", "model"), and last metrics ("accuracy/gap").
        """
        found = self._parsed.drop(columns=[*INTERNAL], errors="ignore")
        if columns:
            found = found.reindex(columns=list(columns))
        return found.infer_objects()

    @cached_property
    def _parsed(self) -> pd.DataFrame:
        from fmnist_lab.studies import frames

        return frames.parsed(self._table)

    @property
    def varied(self) -> list[str]:
        """The parameters in which the runs differ, but for seeds."""
        from fmnist_lab.studies import summary

        return summary.varied(self._table)

    @process.store_as_found()
    def curves(self, *metrics: str) -> pd.DataFrame:
        """Return metrics for every epoch, in the long form that plotting libraries take.

        Args:
            metrics: Their names; without any, the accuracies of both sets and their gap.

        Returns:
            One row per metric, run and epoch, with `run_id`, `name`, the parameters in which the
            runs differ, `seed`, `epoch`, `metric` and `value`.

        Raises:
            UserError: None of the runs has such a metric.
        """
        known = [name for name in self._table if tracking.is_metric(name) and "/" in name]
        for name in metrics:
            if len(self) and name not in self._table:
                near = nearest(name, known)
                hint = f"did you mean {near}?" if near else f"there are {', '.join(sorted(known))}"
                raise UserError(f"received the metric {name}, which none of these runs has; {hint}")
        found = tracking.curves(self._store, self.run_ids, *(metrics or CURVES))
        told = self.frame("run_id", "name", *self.varied, "seed")
        return told.merge(found, on="run_id")

    @process.store_as_found()
    def predictions(self) -> Predictions:
        """Return what the models say of the test set, in the order of the runs.

        Returns:
            float32 probabilities (runs, images, classes), and the true labels (images,).

        Raises:
            UserError: A run has no predictions, or they were tested on different images.
        """
        import numpy as np

        if not len(self):
            raise UserError("there are no runs, and so no predictions; expected at least one run")
        found = [tracking.read_predictions(self._store, run_id) for run_id in self.run_ids]
        labels = found[0][1]
        for run_id, (rows, truth) in zip(self.run_ids, found, strict=True):
            if rows.shape != found[0][0].shape or not np.array_equal(truth, labels):
                raise UserError(f"runs {self.run_ids[0]} and {run_id} were tested on other images")
        return Predictions(np.stack([rows for rows, _ in found]), labels)

    def filter(self, *conditions: Condition, **values: Any) -> Runs:
        """Return the runs that fulfil all conditions, in their order.

        Args:
            conditions: Settings such as "trainer.epochs=5", as `runs compare` takes them; or
                functions of a `Run`.
            values: Settings whose names have no dot, such as `model="mlp"`, `status="FINISHED"`.

        Raises:
            UserError: A setting is one that no run has.
        """
        from fmnist_lab.runs.sides import having

        kept = self._table
        for condition in conditions:
            if isinstance(condition, str):
                kept = having(kept, condition)
        for name, value in values.items():
            kept = (
                kept[kept[name] == value]
                if name in ("status", "job", "name")
                else having(kept, f"{name}={value}")
            )
        tests = [condition for condition in conditions if callable(condition)]
        if tests:
            rows = [Run.of_row(self._store, row) for row in kept.to_dict("records")]
            kept = kept[[all(test(row) for test in tests) for row in rows]]
        return self._some(kept)

    def groups(self, *parameters: str) -> dict[Any, Runs]:
        """Return the runs of each setting.

        Args:
            parameters: What makes up a setting, such as "optimizer", "seed"; without any, the
                parameters in which the runs differ, but for seeds.

        Returns:
            Collections by the parameter's value, or by a tuple of values of several parameters.
        """
        from fmnist_lab.studies import frames

        names = list(parameters) or self.varied
        unknown = [name for name in names if name not in self._parsed]
        if unknown:
            raise UserError(f"received {unknown[0]}, expected one of {', '.join(self._parsed)}")
        places = frames.rows_of(self._parsed, names)
        keys = {key: key[0] if len(names) == 1 else key for key in places}
        return {keys[key]: self._some(self._table.iloc[rows]) for key, rows in places.items()}

    @cached_property
    def _study(self) -> Study:
        from fmnist_lab.studies import summary

        return summary.take_apart(self._table)

    def summary(self) -> pd.DataFrame:
        """Return one row per setting, whose runs differ only in the seed.

        Returns:
            The parameters in which the runs differ, `runs`, and of each metric the mean and the
            ends of its 95 % interval: `accuracy/gap/mean`, `accuracy/gap/low`, `accuracy/gap/high`.

        Raises:
            UserError: No run is finished.
        """
        return self._study.summary.infer_objects()

    @cached_property
    def figures(self) -> Pictures:
        """The charts of a report by name, such as "heat_map_gap" or "gap_against_epochs".

        Raises:
            UserError: No run is finished.
        """
        return self.charts()

    @process.store_as_found()
    def charts(self, *axes: str) -> Pictures:
        """Return the charts of a report by name.

        Args:
            axes: The two parameters of the heat maps; without any, those with the most values.

        Raises:
            UserError: No run is finished, or an axis was not varied.
        """
        from fmnist_lab.studies import report, summary, vega

        wanted = [run for some in summary.longest(self._study).values() for run in some]
        curves = tracking.curves(self._store, wanted, *report.CURVES)

        def drawer(chart: Any) -> Callable[[], bytes]:
            return lambda: vega.png(vega.svg(chart))

        made = report.figures(self._study, curves, axes or None)
        return Pictures({each.file.removesuffix(".png"): drawer(each.chart) for each in made})

    @process.store_as_found()
    def compare(self, other: Runs) -> Comparison:
        """Say what differs between these runs, A, and others, B, and whether it is chance.

        Single runs are compared by their predictions, several by their metrics, setting by setting.

        Args:
            other: The runs of B.

        Raises:
            UserError: A run is on both sides, none of a side is finished, they were tested on
                different images, or they have no setting in common.
        """
        from fmnist_lab.api.findings import Comparison
        from fmnist_lab.runs.sides import predictions_of
        from fmnist_lab.studies import comparison

        if not isinstance(other, Runs):
            raise UserError(
                f"received {type(other).__name__}, expected runs to compare with, such as "
                "lab.runs(\"params.model = 'mlp'\") or runs[[0]]"
            )
        a, b = self.side(), other.side()
        verdict = comparison.compare(a, b, predictions_of(self._store))
        return Comparison((a, b), verdict)

    @process.store_as_found()
    def side(self) -> Side:
        """Return the runs as a side of a comparison.

        Raises:
            UserError: No run is finished.
        """
        from fmnist_lab.runs.sides import side_from

        return side_from(self._store, self._table)

    @process.store_as_found()
    def report(
        self,
        folder: str | Path | None = None,
        *,
        title: str = "",
        axes: Sequence[str] | None = None,
    ) -> Report:
        """Sum the runs up: means over the seeds with 95 % intervals, and what follows from them.

        Args:
            folder: Where to write results.csv, summary.csv, curves.csv, report.md with figures and
                report.html, as `runs report --output` does; None: nowhere.
            title: The report's title; "": the name of the sweep.
            axes: The two parameters of the heat maps; None: those with the most values.

        Raises:
            UserError: No run is finished, or an axis was not varied.
        """
        from fmnist_lab.api import findings

        place = None if folder is None else Path(folder)
        with raised():
            return findings.report(
                self._store,
                self._table,
                self._named,
                place,
                title=title or self._title,
                axes=axes,
            )

    @property
    def _title(self) -> str:
        return ", ".join(each.name for each in self._named) or counted(len(self), "run")

    def __repr__(self) -> str:
        names = [repr(name) for name in self._table.get("name", [])]
        told = ", ".join(names if len(names) <= 4 else [*names[:3], "…", names[-1]])
        return f"<{counted(len(self), 'run')}: {told}>"

    def _repr_html_(self) -> str:
        if not len(self):
            return "no runs"
        shown = ["name", "status", *self.varied, "seed", "accuracy/test", "accuracy/gap"]
        frame = self.frame(*dict.fromkeys(shown))
        return str(frame.to_html(max_rows=20, float_format="{:.4g}".format, border=0, na_rep="-"))
