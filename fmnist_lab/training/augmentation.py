"""Random changes to training images, made on the device inside the compiled step."""

from __future__ import annotations

from dataclasses import dataclass

import tensorflow as tf

from fmnist_lab.errors import UserError


@dataclass(frozen=True)
class Augmentation:
    """Random changes to an image each time it is trained on.

    The draws depend on the seed, the step and the engine alone, so a run can be repeated and
    resumed.

    Attributes:
        flip: Mirror left and right, for half of the images.
        shift: Move by up to so many pixels in each direction, filling with black; 0: not at all.
        erase: Share of the images in which a random rectangle is blackened; 0: none. Its area is
            2 % to 40 % of the image and its aspect ratio 0.3 to 3.3, as in Zhong et al. 2017,
            arXiv:1708.04896, table 1.
    """

    flip: bool = False
    shift: int = 0
    erase: float = 0.0

    def __call__(self, images: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        """Return changed images, of the same shape and type.

        Args:
            images: Shape (n, height, width) or (n, height, width, channels).
            seed: Decides the changes, int32 (2,).

        Raises:
            UserError: The images have another shape.
        """
        if len(images.shape) not in (3, 4):
            raise UserError(
                f"augmentation: received images of shape {tuple(images.shape[1:])}, expected "
                "(height, width) or (height, width, channels)"
            )
        seeds = tf.unstack(tf.random.experimental.stateless_split(seed, 3))
        if self.flip:
            images = _flipped(images, seeds[0])
        if self.shift:
            images = _shifted(images, self.shift, seeds[1])
        if self.erase:
            images = _erased(images, self.erase, seeds[2])
        return images


def _flipped(images: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    ones = (1,) * (len(images.shape) - 1)
    chosen = tf.random.stateless_uniform((images.shape[0], *ones), seed) < 0.5
    return tf.where(chosen, images[:, :, ::-1], images)


def _shifted(images: tf.Tensor, most: int, seed: tf.Tensor) -> tf.Tensor:
    count, height, width, *channels = images.shape
    padded = tf.pad(images, [[0, 0], [most, most], [most, most], *([0, 0] for _ in channels)])
    offsets = tf.random.stateless_uniform((2, count, 1), seed, 0, 2 * most + 1, tf.int32)
    rows = offsets[0] + tf.range(height)
    columns = offsets[1] + tf.range(width)
    moved = tf.gather(padded, rows, axis=1, batch_dims=1)
    return tf.gather(moved, columns[:, None] + tf.zeros((1, height, 1), tf.int32), batch_dims=2)


def _erased(images: tf.Tensor, share: float, seed: tf.Tensor) -> tf.Tensor:
    count, height, width, *channels = images.shape
    chance, area, aspect, top, left = tf.unstack(
        tf.random.stateless_uniform((5, count, 1, 1), seed)
    )
    pixels = (0.02 + 0.38 * area) * height * width
    # Uniform in the logarithm, so that tall and flat rectangles are as frequent.
    ratio = tf.exp((2 * aspect - 1) * tf.math.log(1 / 0.3))
    tall = tf.minimum(tf.round(tf.sqrt(pixels * ratio)), height)
    wide = tf.minimum(tf.round(tf.sqrt(pixels / ratio)), width)
    row = tf.range(height, dtype=tf.float32)[:, None] - tf.floor(top * (height - tall + 1))
    column = tf.range(width, dtype=tf.float32) - tf.floor(left * (width - wide + 1))
    inside = (row >= 0) & (row < tall) & (column >= 0) & (column < wide)
    erased = (chance < share) & inside
    return tf.where(erased[..., None] if channels else erased, tf.zeros_like(images), images)
