"""The measurements of `python -m fmnist_lab.benchmark`."""

from cyclopts import App

from fmnist_lab.benchmark.audit import audit
from fmnist_lab.benchmark.contenders import logged_fit, tutorial
from fmnist_lab.benchmark.epochs import contender, epochs
from fmnist_lab.benchmark.jobs import job
from fmnist_lab.benchmark.memory import memory
from fmnist_lab.benchmark.outage import outage
from fmnist_lab.benchmark.photographs import photograph_accuracy
from fmnist_lab.benchmark.store import store, store_client
from fmnist_lab.benchmark.sweep import sweep
from fmnist_lab.errors import reported
from fmnist_lab.system import process, streams

app = App(
    name="python -m fmnist_lab.benchmark",
    help="Measure speed: contenders in turn, several rounds in one run, medians and ratios.",
    version_flags=(),
)
app.default(epochs)
for measurement in (epochs, job, sweep, memory, store, outage, audit):
    app.command(measurement)
app.command(photograph_accuracy, name="photographs")
# Processes that the measurements start.
for part in (contender, tutorial, logged_fit, store_client):
    app.command(part, show=False)

if __name__ == "__main__":
    process.ours = True
    streams.secure()
    with reported():
        app()
