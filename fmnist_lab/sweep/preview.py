"""A dry run: the jobs of a command, those that are finished, and an estimate of time and disk.

Nothing is started and nothing is written. TensorFlow is not imported, and MLflow only for a store
that is not a file.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig
from rich.console import Console
from rich.markup import escape

from fmnist_lab.config import naming
from fmnist_lab.config.schema import Config, IdxData
from fmnist_lab.sweep import times
from fmnist_lab.sweep.known import BEGUN, FINISHED, IN_PROGRESS, KnownJobs, Planned, size_of_data
from fmnist_lab.sweep.opening import checked_plan
from fmnist_lab.sweep.plan import Plan, job_configs
from fmnist_lab.sweep.search.control import Search
from fmnist_lab.sweep.search.trials import LOG, Trials, read
from fmnist_lab.system.terminal import aligned, printout
from fmnist_lab.texts import counted, duration
from fmnist_lab.tracking import history
from fmnist_lab.training import runtime

# Of more jobs than that, the first and the last are shown.
MOST_SHOWN, FIRST_SHOWN, LAST_SHOWN = 100, 40, 10

MOST_COMPOSED = 20  # more configs, which takes a tenth of a second each


def show_run(config: Config) -> dict[str, float]:
    """Print what a single run would do, and return no metrics.

    Args:
        config: Its checked config.

    Raises:
        UserError: The store cannot be read.
    """
    known = KnownJobs([config], config.tracking, None)
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
            "time": times.of_run(job),
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
    planned, checked, search = checked_plan(config)
    tracked = checked[0].config.tracking
    threads = config.hydra.launcher.get("threads")
    console = printout(piped=120)
    if not planned.jobs:
        _show_search(console, config, planned, [one.config for one in checked], search)
        return
    configs = job_configs(config, planned, checked, composing=MOST_COMPOSED)
    configs += [None] * (len(planned.jobs) - len(configs))
    known = KnownJobs(configs, tracked, threads)
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
            "time": times.of_sweep(jobs, known, workers, resume, shared),
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
    known = KnownJobs(probes, probes[0].tracking, config.hydra.launcher.get("threads"))
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
    left = times.Left(int(trials) if trials else None, 60 * minutes if minutes else None)
    if resume:
        left = left.after(len(before.all), finished, before.seconds)
    each = f"a trial takes at most about {duration(job.seconds)}, which is that of {job.name}"
    if search and budget:
        each = f"{times.of_search(known, search, job, left, workers)}: {each}"
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
            "time": f"{each}; {times.source([job])}",
            "disk": kept if trials else f"for each trial and training of the winner {kept}",
        },
    )
    console.print("\nA search chooses its jobs one by one, so that none can be listed.")
    _end(console)


def _trials_before(config: DictConfig, known: KnownJobs, sweep_hash: str) -> Trials:
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
    data = size_of_data(config)
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
        "training": naming.training(config),
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
