"""The verbs of `python -m fmnist_lab.runs`."""

from collections.abc import Callable

from cyclopts import App, Parameter

from fmnist_lab.runs.again import again
from fmnist_lab.runs.compare import compare
from fmnist_lab.runs.confidence import confidence
from fmnist_lab.runs.export import export
from fmnist_lab.runs.heal import heal
from fmnist_lab.runs.list import list_runs
from fmnist_lab.runs.power import power
from fmnist_lab.runs.promote import promote
from fmnist_lab.runs.removal import delete, move, restore
from fmnist_lab.runs.report import report
from fmnist_lab.runs.reproduce import reproduce
from fmnist_lab.runs.serve import serve
from fmnist_lab.runs.sync import sync
from fmnist_lab.runs.ui import ui
from fmnist_lab.runs.variance import variance
from fmnist_lab.system import process

NAME = "python -m fmnist_lab.runs"
app = App(
    name=NAME,
    help="Look after the runs that exist. A run or a sweep is called by its id, by the beginning "
    "of its id, or by its name. VERB --help tells all about a verb.",
    version_flags=(),
    default_parameter=Parameter(negative="", show_default=False),
)
VERBS: dict[str, tuple[Callable[..., None], str]] = {
    "list": (list_runs, ""),
    "report": (report, " [SWEEP…]"),
    "compare": (compare, " A B"),
    "confidence": (confidence, " [RUN…]"),
    "power": (power, " A [B]"),
    "variance": (variance, " [SWEEP…]"),
    "reproduce": (reproduce, " RUN"),
    "again": (again, " RUN KEY=VALUE…"),
    "move": (move, " RUN… --to URI"),
    "delete": (delete, " RUN…"),
    "restore": (restore, " RUN…"),
    "promote": (promote, " RUN"),
    "export": (export, " [MODEL]"),
    "heal": (heal, ""),
    "sync": (sync, ""),
    "ui": (ui, " [SWEEP|RUN]"),
    "serve": (serve, " [MODEL]"),
}
for verb, (function, words) in VERBS.items():
    app.command(function, name=verb, usage=f"Usage: {NAME} {verb}{words} [OPTIONS]")

if __name__ == "__main__":
    process.run(app)
