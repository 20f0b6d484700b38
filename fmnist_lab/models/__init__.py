"""Models: each a function from (image shape, classes, options) to a Keras model.

Every model takes raw uint8 images and rescales them inside, so that training and serving see the
same numbers, and ends in a softmax over the classes, in float32.

The config reads a model's options, with their types, bounds and defaults, from the signature. It
must not wait seconds for Keras, so the modules with models import Keras inside their functions.
"""

from fmnist_lab.models.convolutional import cnn
from fmnist_lab.models.dense import deep_mlp, linear, mlp
from fmnist_lab.models.residual import resnet, wide_resnet

__all__ = ["cnn", "deep_mlp", "linear", "mlp", "resnet", "wide_resnet"]
