"""Models: each a function from (image shape, classes, options) to a Keras model.

Every model takes raw uint8 images and rescales them inside, so that training and serving see the
same numbers, and ends in a softmax over the classes, in float32.
"""

from fmnist_lab.models.convolutional import cnn
from fmnist_lab.models.dense import linear, mlp
from fmnist_lab.models.residual import resnet, wide_resnet

__all__ = ["cnn", "linear", "mlp", "resnet", "wide_resnet"]
