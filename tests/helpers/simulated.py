"""Runs that were never made, with an effect that is known."""

import itertools

import numpy as np
import pandas as pd

NO_CURVES = pd.DataFrame({"run_id": [], "epoch": [], "metric": [], "value": []})


def simulate(seeds=5, epochs=(1, 5, 10, 20), widths=(32, 128, 512), per_epoch=True, **grid):
    """Runs and curves that look like the tutorial's network, parameters as MLflow stores them.

    The gap grows with epochs and width, test accuracy saturates; a shorter run is the prefix of
    the longer one with its seed. `grid` is of further parameters and their values.
    """
    rows, curves = [], []
    settings = itertools.product(epochs, widths, *grid.values())
    for number, (setting, seed) in enumerate(itertools.product(settings, range(seeds))):
        last, width, *rest = setting
        size = float(np.log2(np.sum(width)))
        places = [
            list(values).index(value) for values, value in zip(grid.values(), rest, strict=True)
        ]
        generator = np.random.default_rng([seed, int(np.sum(width)), *places])
        step = np.arange(1, last + 1)
        noise = np.cumsum(generator.normal(0, 6e-4, max(epochs))) + generator.normal(0, 1e-3)
        gap = 0.0025 * size**1.35 * (step / 20) ** 0.75 + 0.004 * sum(places) + noise[:last]
        test = 0.8 + 0.011 * size - 0.09 / step**0.7 * (1.2 - size / 20) + noise[:last] / 2
        values = {
            "accuracy/test": test,
            "accuracy/train": test + gap,
            "accuracy/gap": gap,
            "loss/test": 1.1 - test * 0.85 + gap,
            "loss/train": 1.1 - test * 0.85 - 2 * gap,
            "loss/gap": 3 * gap,
        }
        layers = [width] if np.isscalar(width) else list(width)
        rows.append(
            {
                "run_id": f"{number:032x}",
                "name": f"h{'-'.join(map(str, layers))} e{last} s{seed}",
                "status": "FINISHED",
                "model": "mlp",
                "model.hidden_units": str(layers if len(layers) > 1 else layers[0]),
                "trainer.epochs": str(last),
                "trainer.batch_size": "32",
                "optimizer.learning_rate": "0.001",
                "seed": str(seed),
                **{name: str(value) for name, value in zip(grid, rest, strict=True)},
                **{name: series[-1] for name, series in values.items()},
            }
        )
        if per_epoch:
            curves += [
                (f"{number:032x}", epoch, name, value)
                for name, series in values.items()
                for epoch, value in zip(step, series, strict=True)
            ]
    return pd.DataFrame(rows), pd.DataFrame(curves, columns=list(NO_CURVES))
