"""A dry run: the jobs of a command, those that are finished, and an estimate of time and disk.

Nothing is started and nothing is written. TensorFlow is not imported, and MLflow only for a store
that is not a file.
"""

from __future__ import annotations

import itertools
import shutil
import socket
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median

from omegaconf import DictConfig
from rich.console import Console
from rich.markup import escape

from fmnist_lab import tracking
from fmnist_lab.config import naming
from fmnist_lab.config.schema import Config, IdxData, Tracking
from fmnist_lab.data import idx
from fmnist_lab.sweep import driver
from fmnist_lab.sweep.estimate import (
    FASHION_MNIST,
    DataSize,
    Estimate,
    Estimator,
    makespan,
)
from fmnist_lab.sweep.plan import Plan, job_configs
from fmnist_lab.sweep.search import rungs
from fmnist_lab.sweep.search.control import Search
from fmnist_lab.sweep.search.trials import LOG, Trials, read
from fmnist_lab.system.terminal import aligned, printout
from fmnist_lab.texts import counted, duration, in_bytes, line
from fmnist_lab.tracking import history, journal
from fmnist_lab.training import runtime

# Of more jobs than that, the first and the last are shown.
MOST_SHOWN, FIRST_SHOWN, LAST_SHOWN = 100, 40, 10

EXAMPLES = 12  # trials that tell how long the trials of a search take on average
MOST_COMPOSED = 20  # more configs, which takes a tenth of a second each

# Seconds until a run begins, and of a sweep beside its jobs: Hydra, MLflow, TensorFlow, the report.
START_SECONDS = 5.0
SWEEP_START_SECONDS = 2.5  # until its parent run is there
BEFORE_SECONDS, AFTER_SECONDS, BETWEEN_SECONDS = 3.5, 2.5, 0.4
COMPOSED_SECONDS = 0.08  # of each job's config, which Hydra composes before the first job
ANSWERED_SECONDS = 0.5  # of a job whose result is taken over

FINISHED, BEGUN, IN_PROGRESS = "finished", "begun", "in progress"


@dataclass(frozen=True)
class Planned:
    """A job that would be done.

    Attributes:
        name: The name that its run would have.
        config: Its config; None where it cannot be told without composing it.
        state: What earlier runs have left of it: `FINISHED`, `BEGUN`, `IN_PROGRESS` or "".
        cost: Its estimate; None if it has no config.
    """

    name: str
    config: Config | None
    state: str
    cost: Estimate | None

    @property
    def epochs(self) -> int:
        """The epochs to be trained."""
        train = self.config is not None and self.config.job.name == "train"
        return self.config.trainer.epochs if self.config and train else 0

    @property
    def seconds(self) -> float:
        """The time that the job would take alone; 0 if that is not known."""
        return self.cost.fixed + self.epochs * self.cost.epoch if self.cost else 0.0


@dataclass(frozen=True)
class _Left:
    """What is left of a search's budget.

    Attributes:
        trials: All trials; None: no limit.
        seconds: Seconds until its time is up; None: no limit.
        begun: Trials that have been begun before.
        finished: Those of them that have come to their end.
    """

    trials: int | None
    seconds: float | None
    begun: int = 0
    finished: int = 0

    def after(self, begun: int, finished: int, spent: float) -> _Left:
        """Return what is left after so many trials and seconds."""
        seconds = None if self.seconds is None else max(self.seconds - spent, 0.0)
        return _Left(self.trials, seconds, begun, finished)

    @property
    def begins(self) -> int:
        """How many trials are to be begun; 0 if nobody knows."""
        return max((self.trials or 0) - self.begun, 0)

    @property
    def unfinished(self) -> int:
        """How many trials may still come to their end; 0 if nobody knows."""
        return max((self.trials or 0) - self.finished, 0)


class _Known:
    """Everything that the store and the machine tell of jobs, asked once.

    Args:
        configs: The configs of the jobs.
        chosen: The checked `tracking`.
        threads: Threads of a job that does not say otherwise; None: all cores.
    """

    def __init__(
        self, configs: Iterable[Config | None], chosen: Tracking, threads: int | None
    ) -> None:
        known = [config for config in configs if config is not None]
        self.store, self.experiment = None, ""
        self.answers: dict[str, history.Answer] = {}
        self.all_asked = True
        self.host = socket.gethostname()
        past: list[history.PastRun] = []
        if chosen.kind != "none":
            self.store = tracking.Store.locate(chosen.uri, for_writing=False)
            self.experiment = tracking.experiment_name(self.store, chosen.experiment)
            hashes = [(each.identity(), each.native_identity()) for each in known]
            self.answers, self.all_asked = history.answers(self.store, self.experiment, hashes)
            models = sorted({str(naming.params(each)["model"]) for each in known})
            past = history.past_runs(self.store, models, self.host)
        self.estimator = Estimator(past, threads)

    def answer(self, config: Config) -> history.Answer | None:
        """Return the finished run of a config."""
        found = self.answers.get(config.identity())
        return found or self.answers.get(config.native_identity())

    def state(self, config: Config) -> str:
        """Return what earlier runs have left of a config."""
        if self.answer(config):
            return FINISHED
        if self.store is None:
            return ""
        identity, root = config.identity(), self.store.unfinished
        folders = [*root.glob(identity), *root.glob(f"{identity}-*")]
        if any(map(journal.is_live, folders)):
            return IN_PROGRESS
        return BEGUN if folders else ""

    def job(self, name: str, config: Config | None) -> Planned:
        """Return a job with all that is known of it."""
        if config is None:
            return Planned(name, None, "", None)
        cost = self.estimator.estimate(config, _size_of_data(config))
        return Planned(name, config, self.state(config), cost)

    def place(self) -> str:
        """Return where the runs would be kept."""
        if self.store is None:
            return "nowhere (tracking=none)"
        where = line(self.store.database or self.store.uri)
        new = "" if self.store.is_there() else ", which does not exist yet"
        return f"{where}, experiment {self.experiment}{new}"

    def disk(self, kept: int) -> str:
        """Return how much room files of so many bytes take, and how much there is."""
        if self.store is None:
            return "nothing is kept"
        text = f"about {in_bytes(kept)}"
        if self.store.artifacts is None:
            return text
        folder = next(each for each in self.store.artifacts.parents if each.is_dir())
        with suppress(OSError):
            text += f"; {in_bytes(shutil.disk_usage(folder).free)} are free"
        return text


def show_run(config: Config) -> dict[str, float]:
    """Print what a single run would do, and return no metrics.

    Args:
        config: Its checked config.

    Raises:
        UserError: The store cannot be read.
    """
    known = _Known([config], config.tracking, None)
    name = naming.run_name(config)
    if config.job.name == "evaluate":
        name = config.name or f"evaluate {config.model_uri}"
    job = known.job(name, config)
    assert job.cost is not None
    console = printout(piped=120)
    answer = known.answer(config)
    aligned(
        console,
        {
            "run": job.name,
            **_config_in_short(config),
            "kept in": known.place(),
            **_state_of_run(job.state, answer, config.resume),
            "time": f"about {duration(START_SECONDS + job.seconds)}; {_source([job])}",
            "disk": known.disk(0 if answer and config.resume else job.cost.bytes),
        },
    )
    _end(console)
    return {}


def show_sweep(config: DictConfig) -> None:
    """Print what a sweep or a search would do.

    Args:
        config: The composed sweep.

    Raises:
        UserError: The sweep could not be done, or the store cannot be read.
    """
    planned, checked, search = driver.checked_plan(config)
    tracked = checked[0].config.tracking
    threads = config.hydra.launcher.get("threads")
    console = printout(piped=120)
    if not planned.jobs:
        _show_search(console, config, planned, [one.config for one in checked], search)
        return
    configs = job_configs(config, planned, checked, composing=MOST_COMPOSED)
    configs += [None] * (len(planned.jobs) - len(configs))
    known = _Known(configs, tracked, threads)
    names = [naming.job_name(job, list(planned.axes)) for job in planned.jobs]
    jobs = [known.job(*each) for each in zip(names, configs, strict=True)]
    axes = "  ".join(f"{axis}={values}" for axis, values in planned.axes.items())
    workers = _workers(config)
    resume = bool(config.get("resume"))
    shared = tracked.kind != "none" and "trainer.epochs" in planned.axes
    left = [job for job in jobs if job.state != FINISHED] if resume else jobs
    aligned(
        console,
        {
            "sweep": f"{counted(len(jobs), 'job')}: {axes}",
            "kept in": known.place(),
            **(_states_of_jobs(jobs, known.all_asked, resume) if known.store else {}),
            "time": _time_of_sweep(jobs, known, workers, resume, shared),
            "disk": known.disk(sum(job.cost.bytes for job in left if job.cost)),
        },
    )
    _table(console, jobs)
    _end(console)


def _show_search(
    console: Console,
    config: DictConfig,
    planned: Plan,
    probes: Sequence[Config],
    search: Search | None,
) -> None:
    """Print what can be said of a search, which chooses its jobs one by one.

    Args:
        console: Takes the lines.
        config: The composed sweep.
        planned: Its plan.
        probes: Configs of trials.
        search: The search; None of a sweeper that is none of ours.
    """
    known = _Known(probes, probes[0].tracking, config.hydra.launcher.get("threads"))
    dearest = search.dearest(lambda each: known.job("", each).seconds) if search else probes[0]
    job = known.job(naming.run_name(dearest), dearest)
    assert job.cost is not None
    sweeper, workers = config.hydra.sweeper, _workers(config)
    trials, minutes = search.total if search else sweeper.get("n_trials"), sweeper.get("timeout")
    finals = search.options.finals if search else 0
    budget = [counted(int(trials), "trial")] if trials else []
    budget += [f"{minutes:g} minutes"] if minutes else []
    name = config.hydra.runtime.choices.get("hydra/sweeper")
    before = _trials_before(config, known, planned.hash) if search else Trials()
    last = search.options.rungs(search.epochs)[-1] if search else 0
    finished = sum(bool(each.failure) or last in each.results for each in before.all)
    resume = bool(config.get("resume"))
    left = _Left(int(trials) if trials else None, 60 * minutes if minutes else None)
    if resume:
        left = left.after(len(before.all), finished, before.seconds)
    each = f"a trial takes at most about {duration(job.seconds)}, which is that of {job.name}"
    if search and budget:
        each = f"{_time_of_search(known, search, job, left, workers)}: {each}"
    kept = known.disk(job.cost.bytes * (left.unfinished + finals if trials else 1))
    then = "it goes on" if resume else "resume=true would go on with it"
    known_before = f"{counted(len(before.all), 'trial')} before, {finished:,} of them finished"
    aligned(
        console,
        {
            "search": f"{name}: " + "  ".join(f"{k}={axis}" for k, axis in planned.axes.items()),
            "kept in": known.place(),
            "budget": " or ".join(budget) or "none is given",
            **({BEGUN: f"{known_before}; {then}"} if before.all else {}),
            "time": f"{each}; {_source([job])}",
            "disk": kept if trials else f"for each trial and training of the winner {kept}",
        },
    )
    console.print("\nA search chooses its jobs one by one, so that none can be listed.")
    _end(console)


def _time_of_search(
    known: _Known,
    search: Search,
    dearest: Planned,
    left: _Left,
    workers: int | None,
) -> str:
    """Return the time of a search in words: the likely one, and the longest that it may take.

    Args:
        known: All that is known of jobs.
        search: The search.
        dearest: The trial that takes longest.
        left: What is left of its budget.
        workers: Jobs at once; None if a cluster decides that.
    """
    options, side_by_side = search.options, workers or 1

    def took(job: Planned, entered: Sequence[float]) -> float:
        """Return the seconds of workers per trial, if so many per trial come to each rung."""
        assert job.cost is not None
        steps = options.rungs(job.epochs)
        epochs = [step - before for before, step in itertools.pairwise((0, *steps))]
        # A trial that is paused is a job of its own at each rung.
        trained = sum(share * each for share, each in zip(entered, epochs, strict=True))
        return sum(entered) * (job.cost.fixed + BETWEEN_SECONDS) + trained * job.cost.epoch

    def whole(
        jobs: Sequence[Planned], entered: Sequence[float], trials: int, share: float
    ) -> float:
        """Return the seconds of a search; a share of a trial follows when its time is up."""
        trial = mean(took(job, entered) for job in jobs)
        limits = [trial * -(-trials // side_by_side)] if left.trials is not None else []
        limits += [left.seconds + share * trial] if left.seconds is not None else []
        final = mean(known.job("", _on_all_images(job)).seconds for job in jobs) + BETWEEN_SECONDS
        around = SWEEP_START_SECONDS + BEFORE_SECONDS + AFTER_SECONDS
        return around + min(limits) + final * -(-options.finals // side_by_side)

    steps = options.rungs(dearest.epochs)
    usual = [known.job("", config) for config in search.examples(EXAMPLES)]
    count = left.trials or rungs.MOST_TRIED
    entered = rungs.entrants(count, steps, options.pruning, options.reduction)
    most = whole([dearest], [1.0] * len(steps), left.unfinished, 1.0)
    likely = whole(usual or [dearest], [each / count for each in entered], left.begins, 0.5)
    how = f"on {counted(workers, 'worker')}" if workers else "if one job ran at a time"
    finals = options.finals
    more = f", {counted(finals, 'training')} of the winner included" if finals else ""
    return f"about {duration(min(likely, most))}, and at most about {duration(most)} {how}{more}"


def _on_all_images(job: Planned) -> Config:
    """Return the config of a trial as its winner is trained."""
    assert job.config is not None
    data = job.config.data.model_copy(update={"validation_fraction": 0.0})
    return job.config.model_copy(update={"data": data})


def _trials_before(config: DictConfig, known: _Known, sweep_hash: str) -> Trials:
    """Return the trials of the search that resume=true goes on with; none if it is elsewhere."""
    if known.store is None:
        return Trials()
    sweep = history.newest_sweep(known.store, known.experiment, sweep_hash)
    file = Path(str(config.hydra.sweep.dir)) / sweep / LOG
    if not sweep or not file.exists():
        return Trials()
    with file.open("rb") as lines:
        return read(lines)[0]


def _config_in_short(config: Config) -> dict[str, str]:
    data = _size_of_data(config)
    model = config.model.target.rpartition(".")[2]
    options = [f"{name}={value}" for name, value in config.model.arguments().items()]
    if config.job.name == "evaluate":
        return {}
    train = min(config.data.train_limit or data.train, data.train)
    test = min(config.data.test_limit or data.test, data.test)
    name = config.data.name if isinstance(config.data, IdxData) else "Fashion-MNIST"
    return {
        "data": f"{name}: {train:,} training images, {test:,} test images",
        "model": " ".join([model, *options]),
        "training": f"{config.optimizer.target.rpartition('.')[2]} "
        f"learning_rate={config.optimizer.learning_rate:g}, "
        f"batches of {config.trainer.batch_size}, {counted(config.trainer.epochs, 'epoch')}, "
        f"seed {config.seed}",
    }


def _state_of_run(state: str, answer: history.Answer | None, resume: bool) -> dict[str, str]:
    if answer:
        run = f"run {answer.name} ({answer.run_id})" if answer.run_id else "a run"
        then = "its results are shown" if resume else "resume=true would show its results"
        return {FINISHED: f"{run} has answered this config; {then}"}
    if state == IN_PROGRESS:
        return {state: "another process trains this very config"}
    if state == BEGUN:
        then = "it goes on" if resume else "resume=true would go on with it"
        return {state: f"an interrupted run of this config is there; {then}"}
    return {}


def _states_of_jobs(jobs: Sequence[Planned], all_asked: bool, resume: bool) -> dict[str, str]:
    states = Counter(job.state for job in jobs)
    least = "" if all_asked and all(job.config for job in jobs) else "at least "
    then = {
        FINISHED: ("their results are taken over", "resume=true takes over their results"),
        BEGUN: ("they go on", "resume=true goes on with them"),
        IN_PROGRESS: ("another process trains them",) * 2,
    }
    told = {
        state: f"{least}{states[state]:,} of {counted(len(jobs), 'job')}: {then[state][not resume]}"
        for state in then
        if states[state]
    }
    if not told and least:
        return {FINISHED: "none is known; not all jobs could be looked for"}
    return told or {FINISHED: "none"}


def _time_of_sweep(
    jobs: Sequence[Planned], known: _Known, workers: int | None, resume: bool, shared: bool
) -> str:
    """Return the time of a sweep in words; with `shared`, jobs go on from shorter ones' epochs."""
    past = history.past_sweeps(known.store, known.host) if known.store else []

    usual = median([job.seconds for job in jobs if job.cost] or [0.0])

    def part(job: Planned, resumed: bool) -> tuple[float, float, int, str | None]:
        if resumed and job.state == FINISHED:
            return ANSWERED_SECONDS, 0.0, 0, None
        if job.config is None or job.cost is None:
            return usual, 0.0, 0, None
        prefix = job.config.prefix_identity() if shared else None
        return job.cost.fixed, job.cost.epoch, job.epochs, prefix

    def whole(resumed: bool) -> float:
        todo = [part(job, resumed) for job in jobs]
        same = [each for each in past if each.workers == workers] or past
        composed = COMPOSED_SECONDS * len(jobs)
        before, after, between = BEFORE_SECONDS, AFTER_SECONDS, BETWEEN_SECONDS
        if same:
            before = median(max(s.before - COMPOSED_SECONDS * s.runs, 0.5) for s in same)
            after, between = (median(s.after for s in same), median(s.between for s in same))
        after = after if known.store else 0.0
        took = makespan(todo, workers or 1, between)
        return SWEEP_START_SECONDS + composed + before + took + after

    finished = any(job.state == FINISHED for job in jobs)
    how = "one job at a time" if workers == 1 else f"{workers} jobs at a time"
    if workers is None:
        how = "if one job ran at a time; the cluster decides how many do"
    more = f"; with resume=true {duration(whole(True))}" if finished and not resume else ""
    return f"about {duration(whole(resume))}, {how}{more}; {_source(jobs)}"


def _source(jobs: Sequence[Planned]) -> str:
    """Say where the estimates of jobs come from."""
    costs = [job.cost for job in jobs if job.cost]
    runs = {run for cost in costs for run in cost.runs}
    modelled = [cost for cost in costs if not cost.runs]
    if any(not cost.known for cost in modelled):
        return "a guess: this machine's runs in the store have no model of this kind"
    if not runs:
        return "from a cost model, because the store has no run of this kind on this machine"
    told = f"from {counted(len(runs), 'earlier run')} on this machine"
    return told + (" and, for other models, a cost model" if modelled else "")


def _table(console: Console, jobs: Sequence[Planned]) -> None:
    shown: list[int | None] = list(range(len(jobs)))
    if len(jobs) > MOST_SHOWN:
        shown = [*shown[:FIRST_SHOWN], None, *shown[-LAST_SHOWN:]]
    width = max(3, len(str(len(jobs))))
    longest = min(max((len(job.name) for job in jobs), default=0), naming.LONGEST_NAME)
    console.print(f"\n[dim]{'job':>{width}}  {'':<{longest}}{'epochs':>8}{'alone':>14}[/dim]")
    for place in shown:
        if place is None:
            hidden = len(jobs) - FIRST_SHOWN - LAST_SHOWN
            console.print(f"{'…':>{width}}  and {counted(hidden, 'job')} more", markup=False)
            continue
        job = jobs[place]
        row = f"{place + 1:>{width}}  {job.name:<{longest}}{job.epochs or '':>8}"
        took = duration(job.seconds) if job.cost else "?"
        text = f"{row}{took:>14}  {job.state}".rstrip()
        console.print(escape(text), soft_wrap=True)


def _end(console: Console) -> None:
    console.print("\nNothing was started: dry_run=true.")


def _workers(config: DictConfig) -> int | None:
    """Return how many jobs run at once; None if a cluster decides that."""
    launcher = config.hydra.launcher
    name = str(launcher._target_).rpartition(".")[2]
    if name == "BasicLauncher":
        return 1
    if name != "LocalCores":
        return None
    cores = runtime.usable_cores()
    return int(launcher.workers or max(1, cores // (launcher.threads or cores)))


def _size_of_data(config: Config) -> DataSize:
    """Return the size of a config's data set, as the headers of its files have it."""
    chosen = config.data
    if not isinstance(chosen, IdxData):
        return FASHION_MNIST
    files = (chosen.train_images, chosen.test_images)
    train, test = (idx.shape_in(Path(chosen.dir), name) for name in files)
    if not train or not test:
        # The run will say what is wrong with the files.
        return FASHION_MNIST._replace(classes=len(chosen.classes()))
    return DataSize(train[0], test[0], train[1:], len(chosen.classes()))
