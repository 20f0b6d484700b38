"""A search that was never made, with an effect that is known, as runs, curves and facts."""

import json
import math

import numpy as np
import pandas as pd

SPACE = {
    "optimizer.learning_rate": "tag(log, interval(1e-4, 1e-1))",
    "model.hidden_units": "tag(log, int(interval(16, 512)))",
    "model.dropout": "interval(0, 0.5)",
    "trainer.batch_size": "choice(32,64,128,256)",
    "optimizer": "choice(adam,sgd)",
}
RUNGS = (1, 3, 9)
COMMAND = "python -m fmnist_lab.run -m hydra/sweeper=optuna model.dropout=interval(0,0.5)"
WINNER = "python -m fmnist_lab.run model.dropout=0.1 data.validation_fraction=0 seed=1000"
VALIDATED = "accuracy/validation"


def search(trials=60, rungs=RUNGS, *, objectives=None, finals=5, seed=0, failed=(7,)):
    """Return runs, curves and facts of a search that halves successively, or of one that does not.

    The accuracy peaks at a learning rate of 10^-2.5, grows with the width, and hardly depends on
    the rest. Trials are paused unless they are in the best third of their rung; `rungs` of a single
    number prunes nothing.
    """
    objectives = objectives or {VALIDATED: "maximize"}
    generator = np.random.default_rng(seed)
    chosen = [
        {
            "optimizer.learning_rate": float(10 ** generator.uniform(-4, -1)),
            "model.hidden_units": round(2 ** generator.uniform(4, 9)),
            "model.dropout": float(generator.uniform(0, 0.5)),
            "trainer.batch_size": int(generator.choice([32, 64, 128, 256])),
            "optimizer": str(generator.choice(["adam", "sgd"])),
        }
        for _ in range(trials)
    ]
    last = rungs[-1]
    curves_of = [_curves(values, generator, last) for values in chosen]
    done = dict.fromkeys(range(trials), 0)
    going = list(range(trials))
    for rung in rungs:
        done |= dict.fromkeys(going, rung)
        going.sort(key=lambda number: -curves_of[number][VALIDATED][rung - 1])
        going = sorted(going[: max(len(going) // 3, 1)])
    runs, curves = [], []
    for number, (values, own) in enumerate(zip(chosen, curves_of, strict=True)):
        status = "FINISHED" if done[number] == last else "SCHEDULED"
        if number in failed:
            done[number], status = 0, "FAILED"
        run = _run(number, f"t{number}", status, values, own, done[number])
        run |= {"role": "trial", "trial": f"{number}", "trial_values": json.dumps(values)}
        runs.append(run | {"seed": "0"})
        curves += [
            (run["run_id"], epoch, metric, own[metric][epoch - 1])
            for metric in own
            for epoch in range(1, done[number] + 1)
        ]
    over = [n for n in range(trials) if done[n] == last]
    best = max(over, key=lambda n: curves_of[n][VALIDATED][-1])
    for place in range(finals):
        own = {
            "accuracy/test": curves_of[best][VALIDATED] - 0.006 + generator.normal(0, 2e-3),
            "accuracy/gap": curves_of[best]["accuracy/gap"] + generator.normal(0, 1e-3),
        }
        run = _run(trials + place, f"final s{1000 + place}", "FINISHED", chosen[best], own, last)
        runs.append(run | {"role": "final", "trial": f"{best}", "seed": f"{1000 + place}"})
    facts = {
        "objectives": objectives,
        "space": SPACE,
        "sampler": "random",
        "seed": seed,
        "pruning": "asha" if len(rungs) > 1 else "none",
        "rungs": list(rungs),
        "epochs": last,
        "n_trials": trials,
        "timeout": None,
        "best": best if len(objectives) == 1 else None,
        "pareto": [],
        "winner_command": WINNER,
        "seconds": 812.4,
        "workers": 2,
        "rung_seconds": [4.2 * rung for rung in rungs],
    }
    columns = ["run_id", "epoch", "metric", "value"]
    return pd.DataFrame(runs), pd.DataFrame(curves, columns=columns), facts


def _curves(values, generator, epochs):
    step = np.arange(1, epochs + 1)
    off = abs(math.log10(values["optimizer.learning_rate"]) + 2.5)
    size = math.log2(values["model.hidden_units"])
    top = 0.885 - 0.045 * off**2 + 0.004 * size - 0.02 * values["model.dropout"]
    if off > 1.4:
        top -= 0.4 * generator.uniform()
    noise = np.cumsum(generator.normal(0, 6e-4, epochs)) + generator.normal(0, 2e-3)
    accuracy = top - 0.08 / step**0.8 * (1 + 0.1 * off) + noise
    gap = 0.002 * size * (step / epochs) * (1 - values["model.dropout"]) + noise / 3
    return {
        VALIDATED: accuracy,
        "loss/validation": 1.1 - 0.85 * accuracy,
        "accuracy/gap": gap + 0.01,
        "accuracy/gap_validation": gap + 0.008,
    }


def _run(number, name, status, values, curves, done):
    last = {metric: series[done - 1] for metric, series in curves.items()} if done else {}
    return {
        "run_id": f"{number:032x}",
        "name": name,
        "status": status,
        "failure": "out of memory" if status == "FAILED" else math.nan,
        "job_number": number,
        **{key: str(value) for key, value in values.items()},
        **last,
    }


def keep(client, experiment, runs, curves, facts):
    """Put a search into a store, as the sweeper does, and return the id of its parent run."""
    from mlflow.entities import Metric, Param

    best = runs[runs["trial"] == str(facts["best"])][VALIDATED].iloc[0]
    tags = {"job": "sweep", "search.facts": json.dumps(facts), "sweep.command": COMMAND}
    parent = client.create_run(experiment, run_name="search", tags=tags).info.run_id
    client.log_metric(parent, "sweep/best_mean/accuracy_validation", best)
    for row in runs.to_dict("records"):
        tags = {"job": "train", "role": row["role"], "trial.number": row["trial"]}
        tags |= {f"sweep.{parent}": f"{row['job_number']:05d}", "mlflow.parentRunId": parent}
        if isinstance(row["trial_values"], str):
            tags["trial.values"] = row["trial_values"]
        run = client.create_run(experiment, run_name=row["name"], tags=tags).info.run_id
        mine = curves[curves["run_id"] == row["run_id"]].itertuples(index=False)
        metrics = [Metric(metric, value, 0, int(epoch)) for _, epoch, metric, value in mine]
        if row["role"] == "final":
            metrics.append(Metric("accuracy/test", row["accuracy/test"], 0, 1))
        params = [Param(key, str(row[key])) for key in (*SPACE, "seed")]
        client.log_batch(run, metrics=metrics, params=params)
        client.set_terminated(run, row["status"])
    client.set_terminated(parent, "FINISHED")
    return parent
