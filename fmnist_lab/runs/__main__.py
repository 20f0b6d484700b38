"""The verbs of `python -m fmnist_lab.runs`."""

from cyclopts import App

from fmnist_lab.runs.compare import compare
from fmnist_lab.runs.heal import heal
from fmnist_lab.runs.list import list_runs
from fmnist_lab.runs.report import report
from fmnist_lab.runs.reproduce import reproduce
from fmnist_lab.runs.sync import sync
from fmnist_lab.runs.ui import ui

app = App(
    name="python -m fmnist_lab.runs", help="Look after the runs that exist.", version_flags=()
)
app.command(list_runs, name="list")
app.command(report)
app.command(compare)
app.command(reproduce)
app.command(heal)
app.command(sync)
app.command(ui)

if __name__ == "__main__":
    app()
