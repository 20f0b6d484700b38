"""A training step written down as its formulas, image by image, in float64 and without any trick.

What is fast is compared with this. Shapes: n images, h rows, w columns, c channels, u units.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass
class Layer:
    """A dense layer, kernel (in, u), or a convolution, kernel (s, s, c, u); bias (u,).

    A convolution has stride 1, zeros around the image, ReLU, and max-pooling over windows of `pool`
    by `pool` pixels; rows and columns that do not fill a window are left out.
    """

    kernel: np.ndarray
    bias: np.ndarray
    pool: int = 1
    state: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.kernel, self.bias = self.kernel.astype(float), self.bias.astype(float)


def convolve(image: np.ndarray, layer: Layer) -> np.ndarray:
    """Return z[y, x, u] = bias[u] + sum over (i, j, c) of image[y+i, x+j, c] kernel[i, j, c, u]."""
    size = len(layer.kernel)
    margin = size // 2
    padded = np.pad(image, [(margin, margin), (margin, margin), (0, 0)])
    output = np.empty((*image.shape[:2], len(layer.bias)))
    for y, x in np.ndindex(output.shape[:2]):
        output[y, x] = layer.bias + np.tensordot(
            padded[y : y + size, x : x + size], layer.kernel, 3
        )
    return output


def convolve_backward(
    image: np.ndarray, layer: Layer, deltas: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the derivatives by the image, the kernel and the bias, from those by z (h, w, u)."""
    size = len(layer.kernel)
    margin = size // 2
    height, width, _ = image.shape
    padded = np.pad(image, [(margin, margin), (margin, margin), (0, 0)])
    by_padded, by_kernel = np.zeros_like(padded), np.zeros_like(layer.kernel)
    for y, x in np.ndindex(height, width):
        window = np.s_[y : y + size, x : x + size]
        by_padded[window] += layer.kernel @ deltas[y, x]
        by_kernel += padded[window][..., None] * deltas[y, x]
    by_image = by_padded[margin : margin + height, margin : margin + width]
    return by_image, by_kernel, deltas.sum(axis=(0, 1))


def max_pool(image: np.ndarray, pool: int) -> tuple[np.ndarray, np.ndarray]:
    """Return each window's maximum (h/pool, w/pool, u), and 1 at its pixel (h, w, u), else 0."""
    height, width = (length // pool for length in image.shape[:2])
    pooled, mask = np.empty((height, width, image.shape[2])), np.zeros_like(image)
    for y, x, u in np.ndindex(pooled.shape):
        window = image[y * pool : (y + 1) * pool, x * pool : (x + 1) * pool, u]
        i, j = np.unravel_index(window.argmax(), window.shape)
        pooled[y, x, u] = window[i, j]
        mask[y * pool + i, x * pool + j, u] = 1
    return pooled, mask


def gradients(
    layers: list[Layer], image: np.ndarray, label: int, smoothing: float
) -> tuple[list[tuple[np.ndarray, np.ndarray]], float, bool]:
    """Return each layer's derivatives of one image's loss, the loss, and whether it is classified.

    Args:
        layers: The network's.
        image: Its input (h, w, c), numbers.
        label: Its class.
        smoothing: Share of the label that is spread over all classes.
    """
    convolutions = [layer for layer in layers if layer.kernel.ndim == 4]
    dense = [layer for layer in layers if layer.kernel.ndim == 2]
    seen, values = [], image
    for layer in convolutions:
        z = convolve(values, layer)
        pooled, mask = max_pool(np.maximum(z, 0), layer.pool)
        seen.append((values, mask * (z > 0)))
        values = pooled
    shape = values.shape
    inputs = [values.ravel()]
    for layer in dense[:-1]:
        inputs.append(np.maximum(inputs[-1] @ layer.kernel + layer.bias, 0))
    logits = inputs[-1] @ dense[-1].kernel + dense[-1].bias
    probabilities = np.exp(logits) / np.exp(logits).sum()
    target = np.full(len(logits), smoothing / len(logits))
    target[label] += 1 - smoothing
    found = []
    deltas = probabilities - target
    for k in reversed(range(len(dense))):
        found.append((np.outer(inputs[k], deltas), deltas))
        deltas = dense[k].kernel @ deltas
        if k:
            deltas = deltas * (inputs[k] > 0)
    deltas = deltas.reshape(shape)
    for layer, (values, mask) in zip(reversed(convolutions), reversed(seen), strict=True):
        height, width = (length * layer.pool for length in deltas.shape[:2])
        by_pixel = np.zeros_like(mask)
        by_pixel[:height, :width] = deltas.repeat(layer.pool, 0).repeat(layer.pool, 1)
        deltas, *by_weights = convolve_backward(values, layer, by_pixel * mask)
        found.append(tuple(by_weights))
    loss = -(target * np.log(probabilities)).sum()
    return found[::-1], float(loss), logits.argmax() == label


def update(
    weights: np.ndarray, gradient: np.ndarray, state: dict, options: dict, rate: float, step: int
) -> None:
    """Change weights and state in place, as an optimizer of some options does.

    Args:
        weights: Of any shape.
        gradient: The loss's derivatives by them, of the same shape.
        state: The optimizer's memory of these weights; empty before the first step.
        options: `weight_decay`; `momentum` and `nesterov`; or `beta_1`, `beta_2` and `epsilon`.
        rate: The learning rate.
        step: Counted from 1.
    """
    weights -= rate * options.get("weight_decay", 0.0) * weights
    m = state.setdefault("m", np.zeros_like(weights))
    if "beta_1" in options:
        # Kingma and Ba 2015, arXiv:1412.6980, the end of section 2.
        v = state.setdefault("v", np.zeros_like(weights))
        m += (1 - options["beta_1"]) * (gradient - m)
        v += (1 - options["beta_2"]) * (gradient**2 - v)
        rate *= np.sqrt(1 - options["beta_2"] ** step) / (1 - options["beta_1"] ** step)
        weights -= rate * m / (np.sqrt(v) + options["epsilon"])
    else:
        momentum = options.get("momentum", 0.0)
        m *= momentum
        m -= rate * gradient
        weights += momentum * m - rate * gradient if options.get("nesterov") else m


def train(
    layers: list[Layer],
    images: np.ndarray,
    labels: np.ndarray,
    order: np.ndarray,
    batch_size: int,
    rates: np.ndarray,
    options: dict,
    *,
    smoothing: float = 0.0,
    steps_before: int = 0,
) -> tuple[float, int]:
    """Train once on the images in an order; return the sum of losses and the number correct.

    Args:
        layers: The network, whose weights and states change.
        images: The network's inputs (n, h, w, c), numbers.
        labels: Their classes (n,).
        order: Which image comes when; the last batch may be smaller.
        batch_size: Images per step.
        rates: The learning rate of each step.
        options: The optimizer's; see `update`.
        smoothing: Share of each label that is spread over all classes.
        steps_before: Steps that the optimizer has taken.
    """
    total, correct = 0.0, 0
    for step, rate in enumerate(rates):
        batch = order[step * batch_size : (step + 1) * batch_size]
        sums: list = [(0.0, 0.0)] * len(layers)
        for i in batch:
            found, loss, right = gradients(layers, images[i], labels[i], smoothing)
            sums = [(a + c, b + d) for (a, b), (c, d) in zip(sums, found, strict=True)]
            total, correct = total + loss, correct + int(right)
        for layer, (by_kernel, by_bias) in zip(layers, sums, strict=True):
            for name, gradient in (("kernel", by_kernel), ("bias", by_bias)):
                update(
                    getattr(layer, name),
                    gradient / len(batch),
                    layer.state.setdefault(name, {}),
                    options,
                    rate,
                    steps_before + step + 1,
                )
    return total, correct
