"""The search: its space, its rungs, its log, and what it refuses."""

import errno
import importlib.util
import json
import re
import shlex
import sqlite3
import sys
from typing import NoReturn

import pytest
from doors import one_line
from mlflow import MlflowClient
from searching import ACCURACY, Killed, Searched, accuracy, options_of, space_of

from fmnist_lab import compat, run
from fmnist_lab.errors import DivergedError, TooLargeError, UserError
from fmnist_lab.jobs.membership import Membership
from fmnist_lab.sweep.job import Job
from fmnist_lab.sweep.search import rungs
from fmnist_lab.sweep.search.options import check
from fmnist_lab.sweep.search.trials import FINALS, TrialLog, trial_of
from fmnist_lab.tracking import member_tag

DROPOUT = "model.dropout=interval(0,0.5)"
GAP = "accuracy/gap_validation"
LIST = (
    "model.dropout=choice(0.0,0.2)",
    "trainer.batch_size=32,64",
    "model.hidden_units=range(4,9,2)",
)


@pytest.mark.parametrize(
    ("word", "distribution"),
    [
        ("a=interval(0,0.5)", "FloatDistribution(high=0.5, log=False, low=0.0, step=None)"),
        (
            "a=tag(log,interval(1e-4,1e-1))",
            "FloatDistribution(high=0.1, log=True, low=0.0001, step=None)",
        ),
        ("a=int(interval(1,8))", "IntDistribution(high=8, log=False, low=1, step=1)"),
        ("a=tag(log,int(interval(16,512)))", "IntDistribution(high=512, log=True, low=16, step=1)"),
        ("a=int(tag(log,interval(16,512)))", "IntDistribution(high=512, log=True, low=16, step=1)"),
        ("a=range(1,8,2)", "IntDistribution(high=7, log=False, low=1, step=2)"),
        ("a=range(0,1,0.25)", "FloatDistribution(high=0.75, log=False, low=0.0, step=0.25)"),
        ("a=range(3,0,-1)", "IntDistribution(high=3, log=False, low=1, step=1)"),
        ("a=sgd,adam", "CategoricalDistribution(choices=('sgd', 'adam'))"),
        ("a=shuffle(choice(3,1,2))", "CategoricalDistribution(choices=('3', '1', '2'))"),
        ("a=choice([8,4],[16])", "CategoricalDistribution(choices=('[8,4]', '[16]'))"),
        ("a=range(1)", "CategoricalDistribution(choices=('0',))"),
    ],
)
def test_hydras_overrides_are_a_space(word, distribution):
    (axis,) = space_of(word).axes
    assert str(axis.distribution()) == distribution


def test_a_trial_is_hydras_overrides_again():
    space = space_of("seed=3", "+model.x=interval(0,1)", "trainer.epochs=9", "optimizer=sgd,adam")
    values = {"model.x": 0.25, "optimizer": "sgd"}
    expected = ["seed=3", "trainer.epochs=9", "+model.x=0.25", "optimizer=sgd"]
    assert space.overrides(values) == expected
    assert space.overrides(values, ["seed=4", "~callbacks.x"])[-2:] == ["seed=4", "~callbacks.x"]
    assert "seed=3" not in space.overrides(values, ["seed=4"])


def test_a_chosen_number_has_few_digits_and_stays_within_the_bounds():
    (axis,) = space_of("a=tag(log,interval(0.00012342,0.1))").axes
    assert axis.rounded(0.0031622776) == 0.003162
    assert axis.rounded(0.00012343) == 0.00012342
    (axis,) = space_of("a=range(0,1,0.1)").axes
    assert axis.points == [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]


def test_pruning_finds_what_is_best_with_a_third_of_the_epochs(tmp_path):
    pruned = Searched(tmp_path / "pruned", sampler="random", n_trials=60)
    whole = Searched(tmp_path / "whole", sampler="random", n_trials=60, pruning="none")
    for search in (pruned, whole):
        search.source = search.run(workers=3)
    assert pruned.source.best().values == whole.source.best().values
    assert whole.spent == 60 * 9
    assert pruned.spent <= 0.4 * whole.spent
    for rung, following in ((1, 3), (3, 9)):
        reached = pruned.source.scores(rung)
        gone = set(pruned.source.scores(following))
        assert gone <= set(rungs.ranked(reached))
        # Whoever is among the best third in the end has gone on; a few more were so for a while.
        assert gone >= set(rungs.ranked(reached)[: len(reached) // 3])
        assert len(gone) <= len(reached) // 2


def test_the_median_lets_the_better_half_go_on(tmp_path):
    search = Searched(tmp_path, sampler="random", n_trials=20, pruning="median")
    source = search.run()
    reached = [len(source.scores(rung)) for rung in source.rungs]
    assert reached[0] == 20
    assert 10 <= reached[1] < 20
    assert 5 <= reached[2] < reached[1]


def test_of_few_trials_the_best_is_trained_to_the_end_all_the_same(tmp_path):
    source = Searched(tmp_path, n_trials=2).run()
    assert source.best().number == rungs.ranked(source.scores(1))[0]
    assert len(source.scores(9)) == 1


def test_tpe_finds_better_trials_than_chance(tmp_path):
    best = {}
    for sampler in ("tpe", "random"):
        search = Searched(tmp_path / sampler, sampler=sampler, n_trials=40, pruning="none")
        scores = search.run().scores(9)
        best[sampler] = sum(sorted(scores.values())[-10:])
    assert best["tpe"] > best["random"]


def test_the_winner_is_trained_with_fresh_seeds_and_without_held_out_images(tmp_path):
    search = Searched(tmp_path, n_trials=6)
    jobs = []
    search.measure = lambda words, epochs: jobs.append(words) or len(jobs)
    source = search.run(workers=2)
    winner = source.best()
    finals = [words for words in jobs if "pause_after" not in words][-2:]
    assert {words["seed"] for words in finals} == {"1", "2"}
    for words in finals:
        assert words["data.validation_fraction"] == "0"
        assert float(words["model.dropout"]) == winner.values["model.dropout"]
    assert search.listener.winners == [winner.number]
    assert {trial_of(number) for number in search.listener.finals} == {winner.number}


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(
    "changed",
    [
        {"sampler": "tpe", "pruning": "asha"},
        {"sampler": "cmaes", "pruning": "median"},
        {"sampler": "random", "pruning": "none"},
    ],
    ids=lambda changed: changed["sampler"],
)
def test_a_search_that_is_killed_at_any_moment_goes_on_as_if_it_were_not(
    tmp_path, workers, changed
):
    undisturbed = Searched(tmp_path / "undisturbed", n_trials=12, **changed)
    expected = undisturbed.run(workers=workers)
    killed = Searched(tmp_path / "killed", n_trials=12, **changed)
    # A prime, so that the ends fall between a job's beginning and its end, and after it.
    deaths = 0
    while True:
        try:
            found = killed.run(workers=workers, kill_after=7)
        except Killed:
            deaths += 1
            continue
        break
    assert deaths >= 4
    assert [trial.number for trial in found.trials.all] == list(range(12))
    assert not found.trials.open()
    if workers == 1:
        assert killed.facts() == undisturbed.facts()
        assert killed.spent == undisturbed.spent
        assert found.best() == expected.best()
    # No trial that had ended was given out again for what it had done.
    ended = [given for given in killed.given if given[0] < FINALS]
    assert len(ended) - len(set(ended)) <= deaths * workers


def test_no_job_takes_over_the_runs_of_another_search(tmp_path):
    search = Searched(tmp_path, space=("resume=true", "seed=7", DROPOUT), n_trials=2)
    search.resumed = True
    usual, given = search.do, []
    search.measure = lambda words, epochs: epochs
    search.do = lambda number, words: given.extend(words) or usual(number, words)
    search.run()
    assert {"pause_after=1", "seed=7", "seed=1"} <= set(given)  # trials, and the winner
    # A trial's config may have resume=true from a file as well.
    assert given.count("resume=false") == len(search.given)
    assert "resume=true" not in given


def test_a_longer_search_takes_over_a_shorter_one(tmp_path):
    whole = Searched(tmp_path / "whole", n_trials=12, finals=0, pruning="none")
    whole.run()
    extended = Searched(tmp_path / "extended", n_trials=5, finals=0, pruning="none")
    extended.run()
    extended.options = options_of(n_trials=12, finals=0, pruning="none")
    extended.run()
    assert extended.facts() == whole.facts()
    assert len(extended.given) == 12


def test_a_torn_line_at_the_end_of_the_log_is_as_if_it_were_not_there(tmp_path):
    search = Searched(tmp_path, n_trials=3)
    search.run()
    text = search.file.read_bytes()
    lines = text.splitlines(keepends=True)
    search.file.write_bytes(b"".join(lines[:-1]) + lines[-1][:-5])
    log = TrialLog(search.file)
    log.close()
    assert search.file.read_bytes() == b"".join(lines[:-1])
    search.run()
    assert [line["event"] for line in search.facts()][-1] == "final over"


def test_a_trial_that_fails_costs_itself_and_is_shunned(tmp_path):
    search = Searched(tmp_path, n_trials=30, pruning="none", finals=0)
    usual = search.do

    def do(number: int, words: list[str]) -> dict:
        returned = usual(number, words)
        rate = dict(word.split("=") for word in words)["optimizer.learning_rate"]
        return {"failure": "the loss is nan"} if float(rate) > 3e-3 else returned

    search.do = do
    source = search.run()
    failed = [bool(trial.failure) for trial in source.trials.all]
    assert len(failed) == 30
    assert sum(failed[:10]) >= 3
    assert sum(failed[20:]) < sum(failed[:10])
    assert not source.best().failure


def test_a_trial_whose_worker_was_lost_is_done_once_more(tmp_path):
    search = Searched(tmp_path, n_trials=4, pruning="none", finals=0)
    usual, lost = search.do, []

    def do(number: int, words: list[str]) -> dict:
        returned = usual(number, words)
        if number in (1, 3) and lost.count(number) < (1 if number == 1 else 9):
            lost.append(number)
            return {"failure": "its worker process was ended by SIGKILL", "lost": True}
        return returned

    search.do = do
    source = search.run()
    assert lost == [1, 3, 3]
    assert [bool(trial.failure) for trial in source.trials.all] == [False, False, False, True]


def test_a_trial_that_ends_by_itself_is_finished(tmp_path):
    search = Searched(tmp_path, n_trials=3)
    search.do = lambda number, words: {ACCURACY: 0.5 + number / 100, "epoch": 2.0}
    source = search.run()
    # All stop in their second epoch, so that the first rung is behind them and the others are not.
    assert set(source.scores(9)) == {2}
    assert source.best().number == 2


def test_a_training_of_the_winner_that_failed_is_done_again(tmp_path):
    search = Searched(tmp_path, n_trials=3, pruning="none")
    usual = search.do
    search.do = lambda number, words: (
        {"failure": "the disk is full"} if number >= FINALS else usual(number, words)
    )
    assert list(search.run().trials.finals.values()) == ["the disk is full"] * 2
    search.do = usual
    assert list(search.run().trials.finals.values()) == ["", ""]
    assert len([number for number, _ in search.given if number < FINALS]) == 3


def test_all_workers_train_the_winner_at_once(tmp_path):
    source = Searched(tmp_path, n_trials=2, pruning="none", finals=3).open()
    trials = [source.next(), source.next()]
    source.over(0, _returned(trials[0]))
    # The other trial may win yet.
    assert source.next() is None
    source.over(1, _returned(trials[1]))
    finals = [source.next() for _ in range(3)]
    assert [number - FINALS for number, _ in finals] == [0, 1, 2]
    assert source.next() is None
    assert source.workers == 3


def test_of_trainings_that_were_killed_only_those_asked_for_are_repeated(tmp_path):
    search = Searched(tmp_path, n_trials=1, pruning="none", finals=3)
    source = search.open()
    source.over(0, _returned(source.next()))
    assert len([source.next() for _ in range(3)]) == 3
    search.options = options_of(n_trials=1, pruning="none", finals=2)
    assert list(search.run().trials.finals.values()) == ["", "", None]


def test_a_trial_that_failed_by_no_fault_of_its_own_is_done_again_by_resume(tmp_path):
    search = Searched(tmp_path, n_trials=6)
    usual, kinds = search.do, {0: "lasting", 1: "", 2: "elsewhere", 4: "nan"}

    def fail(number: int, words: list[str]) -> dict:
        kind = kinds.get(number)
        if kind == "nan":
            return {ACCURACY: float("nan"), "epoch": 1.0}
        return usual(number, words) if kind is None else {"failure": "no", "kind": kind}

    search.do = fail
    failed = [trial.number for trial in search.run().trials.all if trial.failure]
    assert failed == [0, 1, 2, 4]
    search.do, before = usual, len(search.given)
    source = search.run()
    assert [trial.number for trial in source.trials.all if trial.failure] == [0, 4]
    again = [number for number, _ in search.given[before:] if number < FINALS]
    assert {1, 2} <= set(again)
    assert not {0, 4} & set(again)
    for number in (1, 2):
        reached = source.trials.all[number].results[1]
        assert reached == (accuracy(source.trials.all[number].values, 1),)
    # What was done again is not done a third time.
    before = len(search.given)
    search.run()
    assert search.given[before:] == []


def test_a_search_ends_when_the_disk_has_failed_three_jobs_in_a_row(tmp_path):
    search = Searched(tmp_path, n_trials=20)
    usual, done = search.do, []
    full = {3, 4, *range(8, 99)}  # the jobs at whose end there is no room; two are too few

    def do(number: int, words: list[str]) -> dict:
        done.append(number)
        if len(done) in full:
            return {"failure": "the disk is full", "kind": "elsewhere"}
        return usual(number, words)

    search.do = do
    source = search.run(workers=2)
    assert source.trouble == "3 jobs in a row failed for one reason: the disk is full"
    assert len(done) == 11  # with the one that ran beside the last of the three
    assert search.listener.finals == []
    full.clear()
    source = search.run()
    assert (source.trouble, len(source.trials.all), len(search.listener.finals)) == ("", 20, 2)
    assert not any(trial.failure for trial in source.trials.all)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (DivergedError("the loss is nan"), "lasting"),
        (TooLargeError("model: received 9 parameters"), "lasting"),
        (OSError(errno.ENOSPC, "No space left on device"), "elsewhere"),
        (sqlite3.OperationalError("database is locked"), "elsewhere"),
        (UserError("resume: run x is in progress"), ""),
        (ValueError("shapes"), ""),
    ],
    ids=lambda each: type(each).__name__,
)
def test_a_job_says_whose_fault_its_failure_is(tmp_path, error, kind):
    def fail() -> NoReturn:
        raise error

    def fail_translated() -> NoReturn:
        raise UserError("in one sentence") from error

    job = Job(Membership("", 0, "one"), None, tmp_path)
    assert job.attempt(fail)["kind"] == kind
    if kind == "elsewhere":
        assert job.attempt(fail_translated)["kind"] == kind


def test_a_grid_has_each_point_once_and_then_ends(tmp_path):
    search = Searched(tmp_path, space=LIST, sampler="grid", n_trials=None, pruning="none", finals=0)
    search.measure = lambda words, epochs: float(words["model.hidden_units"])
    source = search.run(workers=2)
    chosen = {tuple(trial.values.values()) for trial in source.trials.all}
    assert len(chosen) == len(source.trials.all) == 12
    assert source.best().values["model.hidden_units"] == 8


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_no_trial_is_done_twice_in_a_small_space(tmp_path, sampler):
    search = Searched(tmp_path, space=LIST, sampler=sampler, n_trials=50, pruning="none", finals=0)
    search.measure = lambda words, epochs: float(words["model.hidden_units"])
    assert len({tuple(each.values.values()) for each in search.run().trials.all}) == 12


def test_of_several_objectives_the_front_is_kept(tmp_path):
    search = Searched(tmp_path, objective=[ACCURACY, GAP], pruning="none", n_trials=15, finals=1)
    usual = search.do

    def do(number: int, words: list[str]) -> dict:
        returned = usual(number, words)
        return returned | {GAP: returned[ACCURACY] ** 2}

    search.do = do
    source = search.run()
    # What is more accurate has the larger gap here, so that no trial beats another.
    assert sorted(source.front()) == list(range(15))
    assert source.best().number == source.front()[0]


def test_time_that_is_up_ends_a_search_with_its_winner_trained(tmp_path):
    search = Searched(tmp_path, n_trials=None, timeout=1, finals=2)
    source = search.open()
    while len(source.trials.all) < 4:
        given = source.next()
        source.over(given[0], _returned(given))
    source._began -= 61
    given = source.next()
    while given is not None:
        source.over(given[0], _returned(given))
        given = source.next()
    assert source.exhausted()
    assert len(source.trials.all) == 4
    assert source.best() is not None
    assert len(search.listener.finals) == 2


def _returned(given):
    return compat.job_return(given[1], {ACCURACY: 0.5})


@pytest.mark.parametrize(
    ("changed", "words", "said"),
    [
        ({"objective": "accuracy/test"}, [], "for example accuracy/validation"),
        ({"objective": "accuracy/gap"}, [], "for example accuracy/gap_validation"),
        ({"objective": "loss/fit"}, [], "no metric of the held-out images"),
        ({"objective": "acc/validation"}, [], "expected one of accuracy/validation"),
        ({"objective": "precision/gap_validation"}, [], "no metric of the held-out images"),
        ({"objective": [ACCURACY, GAP]}, [], "no rung can rank trials by several figures at once"),
        ({"objective": [ACCURACY, ACCURACY]}, [], "expected each metric once"),
        ({"direction": ["maximize"] * 2}, [], "2 directions for 1 objective,"),
        ({"n_trials": None}, [], "n_trials=60 or hydra.sweeper.timeout=15"),
        ({"sampler": "grid"}, [], "which has no end of values"),
        ({"sampler": "cmaes"}, [], "at least two keys"),
        ({"sampler": "tpa"}, [], "did you mean hydra.sweeper.sampler=tpe"),
        ({"reduction": 1}, [], "hydra.sweeper.reduction: received 1, expected a whole"),
        ({}, ["seed=range(3)"], "a search that chooses the seed chooses luck"),
        ({}, ["trainer.epochs=5,9"], "expected one number, or hydra.sweeper.pruning=none"),
        ({}, ["data.validation_fraction=0.1,0.2"], "on the same held-out images only"),
        ({}, ["data.split_seed=range(0,20)"], "on the same held-out images only"),
        ({}, ["data=default,other"], "on the same held-out images only"),
        ({}, ["+pause_after=2,3"], "the search itself says when a trial is paused"),
        ({}, ["model.x=interval(0.5,0.1)"], "the smaller one first"),
        ({}, ["model.x=tag(log,interval(0,0.1))"], "two numbers above 0"),
    ],
)
def test_a_search_that_would_fool_itself_is_refused(changed, words, said):
    with pytest.raises(UserError) as error:
        check(options_of(**changed), space_of(DROPOUT, *words))
    assert said in str(error.value)
    assert ": received " in str(error.value)


@pytest.mark.skipif(importlib.util.find_spec("torch") is not None, reason="torch is installed")
def test_a_sampler_that_needs_torch_says_so():
    with pytest.raises(UserError, match="pip install torch"):
        check(options_of(sampler="gp"), space_of(DROPOUT))


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed")
def test_a_gaussian_process_finds_better_trials_than_chance(tmp_path):
    best = {}
    for sampler in ("gp", "random"):
        search = Searched(tmp_path / sampler, sampler=sampler, n_trials=16, pruning="none")
        scores = search.run().scores(9)
        best[sampler] = max(scores.values())
    assert best["gp"] > best["random"]


SEARCH = ("-m", "hydra/sweeper=optuna", "hydra.sweeper.n_trials=3")
OBJECTIVE = "hydra.sweeper.objective"
SPLIT = "data.validation_fraction=0.1"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([DROPOUT], "never on the test set; expected a share above 0"),
        ([SPLIT, DROPOUT, "tracking=none"], "add hydra.sweeper.pruning=none"),
        ([SPLIT, DROPOUT, "job=evaluate", "model_uri=runs:/1/model"], "expected job=train"),
        ([SPLIT, "model.dropout=interval(0.5,1.5)"], "model.dropout: received 1.5, expected a"),
        ([SPLIT, "model.dropout=0.5"], "nothing is searched"),
        ([SPLIT, DROPOUT, "+pause_after=2"], "the search itself says when a trial is paused"),
        ([SPLIT, DROPOUT, "pause_after=2"], "the search itself says when a trial is paused"),
        ([SPLIT, DROPOUT, f"{OBJECTIVE}=accuracy/validation_clean"], "has a wrong label"),
        (
            [SPLIT, DROPOUT, f"{OBJECTIVE}={GAP}", "trainer.epochs=9", "trainer.evaluate_every=3"],
            "compared after 1 epoch, when it is not measured; expected trainer.evaluate_every=1, "
            "hydra.sweeper.first_rung=3, or",
        ),
        ([SPLIT, DROPOUT, "hydra.sweeper.prunning=none"], "hydra.sweeper.prunning: unknown key"),
    ],
)
def test_a_command_that_cannot_be_a_search_is_refused(door, words, said):
    assert said in door.error(*SEARCH, *words)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("seed", "${trainer.batch_size}", "seed: received 32 in one trial and 64 in another, but"),
        ("data.split_seed", "${trainer.batch_size}", "data.split_seed: received 32 in one trial"),
        ("data.train_limit", "${trainer.batch_size}", "on the same held-out images only"),
    ],
)
def test_a_search_over_what_decides_the_images_or_the_luck_is_refused(door, key, value, said):
    assert said in door.error(*SEARCH, SPLIT, "trainer.batch_size=32,64", f"{key}={value}")


@pytest.mark.slow
def test_experiments_that_have_other_images_are_not_compared(door, tmp_path):
    folder = tmp_path / "mine" / "experiment"
    folder.mkdir(parents=True)
    text = "# @package _global_\ndata:\n  split_seed: {}\n"
    for name, seed in (("one", 1), ("two", 2), ("same", 32), ("batch", "${trainer.batch_size}")):
        folder.joinpath(f"{name}.yaml").write_text(text.format(seed))
    words = (*SEARCH, SPLIT, "--config-dir", str(folder.parent))
    said = door.error(*words, "experiment=one,two")
    assert "data.split_seed: received 1 in one trial and 2 in another" in said
    # Only two changes together show that the second one's images follow the size of batches.
    said = door.error(*words, "experiment=same,batch", "trainer.batch_size=32,64")
    assert "data.split_seed: received 32 in one trial and 64 in another" in said


@pytest.fixture
def won(door, monkeypatch):
    """Return a function that begins a search, in which trial 0 has won with the given values.

    It returns the overrides of the winner's trainings, and the command that trains it.
    """

    def win(*words, **values):
        found = []

        def begun(*_, search, **__):
            source = search.source
            search.log.write("trial", 0, 0.0, epochs=source.last, values=values, attrs={})
            search.log.write("result", 0, 0.0, epochs=[source.last], objectives=[0.9])
            found.append([words for _, words in iter(source.next, None)])
            found.append(search.winner_command())
            raise SystemExit(0)

        monkeypatch.setattr(door, "sweep", begun)
        options = ("tracking=none", "hydra.sweeper.pruning=none", "hydra.sweeper.n_trials=1")
        assert door("-m", "hydra/sweeper=optuna", SPLIT, *options, *words) == 0
        return found

    return win


@pytest.mark.slow
def test_callbacks_that_the_winner_has_decide_what_its_trainings_leave_out(won):
    axis = "callbacks=none,early_stopping"
    for chosen, dropped in (("none", []), ("early_stopping", ["~callbacks.early_stopping"])):
        finals, command = won(axis, callbacks=chosen)
        assert len(finals) == 5
        assert all([word for word in each if word[0] == "~"] == dropped for each in finals)
        assert ("~callbacks" in command) == bool(dropped)


@pytest.mark.slow
def test_a_winner_is_trained_with_no_labels_of_held_out_images_made_wrong(won):
    noise = ("data.label_noise=0.2", "data.noisy_validation=true")
    finals, command = won(*noise, DROPOUT, **{"model.dropout": 0.25})
    assert all("data.noisy_validation=false" in each for each in finals)
    assert "data.noisy_validation=true" not in command


@pytest.mark.slow
def test_no_job_takes_over_other_runs_where_a_users_own_file_says_resume(hydra_here, monkeypatch):
    text = "defaults:\n  - /config\n  - _self_\nresume: true\n"
    (hydra_here / "mine.yaml").write_text(text)
    given = []

    def begin(*_, search, **__):
        given.extend(words for _, words in [search.source.next()])
        raise SystemExit(0)

    monkeypatch.setattr("fmnist_lab.sweep.driver.SweepDriver", begin)
    words = (f"--config-dir={hydra_here}", "--config-name=mine", *SEARCH, SPLIT, DROPOUT)
    monkeypatch.setattr(sys, "argv", ["run", *words])
    with pytest.raises(SystemExit) as end:
        run.main()
    assert end.value.code == 0
    (trial,) = given
    assert "resume=false" in trial


@pytest.mark.slow
def test_the_command_of_the_winner_has_its_folders_and_threads(won, tmp_path):
    launcher = ("hydra/launcher=local_cores", "hydra.launcher.threads=1")
    places = ("--config-dir", str(tmp_path))
    _, command = won(*places, *launcher, DROPOUT, **{"model.dropout": 0.25})
    assert command.startswith(f"python -m fmnist_lab.run --config-dir={tmp_path} ")
    assert command.endswith(
        "model.dropout=0.25 data.validation_fraction=0 seed=1 trainer.threads=1"
    )
    _, command = won(*launcher, "trainer.threads=2", DROPOUT, **{"model.dropout": 0.25})
    assert "trainer.threads=2" in command
    assert "trainer.threads=1" not in command


def test_an_interval_without_a_search_is_refused_with_the_way_to_one(door):
    said = door.error("-m", SPLIT, DROPOUT)
    assert said.startswith("model.dropout: received interval(0,0.5), which has no end of values")
    assert "add hydra/sweeper=optuna" in said


def test_optuna_that_is_missing_is_named_with_its_extra(door, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert "pip install 'fmnist_lab[search]'" in door.error(*SEARCH, SPLIT, DROPOUT)


@pytest.mark.slow
def test_a_search_does_not_go_on_without_its_log(hydra_here, tmp_path, monkeypatch, capsys):
    here, there = tmp_path / "here", tmp_path / "there"
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    client = MlflowClient(uri)
    begun = []

    def begin(*_, **facts):
        begun.append(facts["search"].source.trials)
        raise SystemExit(0)

    monkeypatch.setattr("fmnist_lab.sweep.driver.SweepDriver", begin)

    def search(folder, *words: str) -> int:
        folder.mkdir(exist_ok=True)
        monkeypatch.chdir(folder)
        words = (*SEARCH, SPLIT, DROPOUT, f"tracking.uri={uri}", *words)
        monkeypatch.setattr(sys, "argv", ["run", *words])
        with pytest.raises(SystemExit) as end:
            run.main()
        for parent in client.search_runs(["1"], "tags.job = 'sweep'"):
            client.set_tag(parent.info.run_id, "process", "another-boot 1 1")  # it was killed
        return end.value.code

    assert search(here) == 0
    (parent,) = client.search_runs(["1"])
    id = parent.info.run_id
    log = here / "mlruns/hydra" / id / "trials.jsonl"
    trial = {"event": "trial", "number": 0, "seconds": 1, "epochs": 5, "values": {}, "attrs": {}}
    log.write_text(json.dumps(trial) + "\n")
    client.create_run("1", tags={member_tag(id): "00000"})
    client.set_terminated(id, "KILLED")
    capsys.readouterr()
    assert search(there, "resume=true") == 2
    said = one_line(capsys.readouterr().err)
    assert said.startswith(f"resume: the log of the trials of this search is not in {there}")
    assert f"expected it in {log.parent}; add hydra.sweep.dir=" in said
    assert client.get_run(id).info.status == "KILLED"
    (mend,) = re.search("; add (.*), or leave out resume=true", said).groups()
    assert search(there, "resume=true", *shlex.split(mend)) == 0
    assert [len(trials.all) for trials in begun] == [0, 1]
    assert len(client.search_runs(["1"])) == 2


def test_an_objective_is_large_or_small_by_its_name():
    options = options_of(objective=[ACCURACY, GAP, "loss/validation"])
    assert list(options.objectives.values()) == ["maximize", "minimize", "minimize"]
    assert options_of(direction="minimize").objectives == {ACCURACY: "minimize"}
