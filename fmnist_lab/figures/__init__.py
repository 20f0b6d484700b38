"""Figures of one run: arrays in, matplotlib `Figure` out."""

from fmnist_lab.figures.curves import learning_curves, mislabelled, speed
from fmnist_lab.figures.images import (
    confident_mistakes,
    first_image,
    image_grid,
    prediction_grid,
    single_prediction,
)
from fmnist_lab.figures.photographs import Shown, photograph_predictions
from fmnist_lab.figures.quality import (
    confusion_matrix,
    reliability_diagram,
    reliability_diagrams,
    risk_coverage,
)

__all__ = [
    "Shown",
    "confident_mistakes",
    "confusion_matrix",
    "first_image",
    "image_grid",
    "learning_curves",
    "mislabelled",
    "photograph_predictions",
    "prediction_grid",
    "reliability_diagram",
    "reliability_diagrams",
    "risk_coverage",
    "single_prediction",
    "speed",
]
