"""Images and labels: where they come from, how they are checked, and how they are split."""

from fmnist_lab.data.dataset import FASHION_MNIST, Dataset, load, names_of, of_arrays
from fmnist_lab.data.noise import Noise

__all__ = ["FASHION_MNIST", "Dataset", "Noise", "load", "names_of", "of_arrays"]
