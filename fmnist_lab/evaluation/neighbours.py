"""Near duplicates in a stack of images: pairs that are close, and pairs that are altered copies.

Both searches compare every image with every other. A bound makes that affordable: an orthogonal
projection lengthens no vector, so the distance between the projections of two images onto the
leading principal components is at most their own distance. Blocks of matrix products give the bound
for all pairs; only those that it cannot exclude are compared in full. So `close_pairs` is exact.

`images` are uint8 (n, height, width) or (n, height, width, 3).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from math import sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import fft
from threadpoolctl import threadpool_limits

Progress = Callable[[int, int], None] | None
Indices = NDArray[np.int64]

COMPONENTS = 64  # of the projection; half as many leave twice as many pairs to compare in full
FREQUENCIES = 16  # per axis; larger images are compared by their coarse structure first
SAMPLE = 15_000  # images that the principal components are taken from; any basis gives a bound
ROWS, COLUMNS = 512, 2048  # of a block of products, 4 MB: what a core's cache holds
CHUNK = 4096  # images or pairs that are worked on at once
MOST_PAIRS = 2_000_000
# The part of a bound's square that float32 may get wrong, of the largest square of a norm: 66
# products of a relative error of 6e-8 each, and some room.
ROUNDING = 1e-5

# Two images of unit contrast that are copies, one of them shifted by a pixel, differ by this much
# or less after 99 % of all shifts of Fashion-MNIST, although a row or column is lost. Pairs that
# differ more are not looked at.
REACH = 0.18
WHITE = 255  # where a copy that was brightened is cut off
# White pixels tell nothing of how much brighter an image is, unless the others have less than this
# share of the contrast.
SHARED = 0.1
# Images with less contrast, as L2 distance of pixels / 255 from their mean, have too little on them
# to be recognised in another brightness.
LEAST_CONTRAST = 1.0


class TooManyPairsError(ValueError):
    """More than `MOST_PAIRS` pairs are near duplicates: the threshold is too loose."""


@dataclass(frozen=True, eq=False)
class Pairs:
    """Pairs of images, the first index below the second, in the order of the indices.

    Attributes:
        first, second: int64 (pairs,), indices into the images.
        distance: float64 (pairs,), L2 distance of pixels / 255, over all pixels and channels.
        correlation: float64 (pairs,), of the pixels after alignment; nan in `close_pairs`.
        shift: int8 (pairs, 2), rows and columns by which the first image is moved down and to the
            right to lie on the second; 0 in `close_pairs`.
        gain: float64 (pairs,), how many times the second image has the contrast of the first; nan
            in `close_pairs`.
    """

    first: Indices
    second: Indices
    distance: NDArray[np.float64]
    correlation: NDArray[np.float64]
    shift: NDArray[np.int8]
    gain: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.first)

    def __getitem__(self, chosen: NDArray[Any] | slice) -> Pairs:
        """Return some of the pairs."""
        return Pairs(*(array[chosen] for array in vars(self).values()))


def close_pairs(
    images: NDArray[np.uint8], radius: float, *, threads: int = 1, on_progress: Progress = None
) -> Pairs:
    """Return all pairs of images whose pixels / 255 are at most `radius` apart, by L2 distance.

    The result is exact.

    Args:
        images: uint8 (n, height, width[, 3]).
        radius: The largest distance, above 0.
        threads: Cores to use.
        on_progress: Called now and then with (images done, images).

    Raises:
        TooManyPairsError: There are more than `MOST_PAIRS`.
    """
    # The mean over c channels times √c is an orthogonal projection too.
    scale = sqrt(images.shape[3] if images.ndim == 4 else 1) / 255

    def features(part: NDArray[np.uint8]) -> NDArray[np.float32]:
        spectra = _spectra(_grey(part) * np.float32(scale))
        return np.concatenate([spectra.real, spectra.imag], axis=1)

    sample = features(images[:: -(-len(images) // SAMPLE)])
    points = _projected(sample, map(features, _parts(images)))

    def compared(first: Indices, second: Indices) -> Pairs:
        distance = np.sqrt(_squares(images, first, second)) / 255
        unknown = np.full(len(first), np.nan)
        still = np.zeros((len(first), 2), np.int8)
        return Pairs(first, second, distance, unknown, still, unknown)[distance <= radius]

    return _collected(points, radius, compared, threads, on_progress)


def altered_pairs(
    images: NDArray[np.uint8],
    correlation: float,
    *,
    threads: int = 1,
    on_progress: Progress = None,
) -> Pairs:
    """Return pairs of which one looks like a copy of the other: shifted by a pixel, or brightened.

    Two images are compared by the correlation coefficient of their pixels, which does not change
    when one is made brighter or stronger in contrast (zero-mean normalised cross-correlation; Lewis
    1995, "Fast normalized cross-correlation", Vision Interface). It is taken where the images
    overlap after the shift of up to one pixel that suits them best. Pixels that brightening would
    have made more than white are expected to be white.

    The candidates are found by the absolute values of the Fourier transforms, which no cyclic shift
    changes: the distance between these is a lower bound of the distance between the images after
    any such shift. A copy that has lost more than `REACH` at a border is not found.

    Args:
        images: uint8 (n, height, width[, 3]); colours are averaged.
        correlation: The smallest coefficient, above 0 and at most 1.
        threads: Cores to use.
        on_progress: Called now and then with (images done, images).

    Returns:
        The pairs; an image of less than `LEAST_CONTRAST` is in none.

    Raises:
        TooManyPairsError: There are more than `MOST_PAIRS`.
    """
    contrasts = np.concatenate([_unit(_grey(part))[1] for part in _parts(images)])
    kept = np.flatnonzero(contrasts >= 255 * LEAST_CONTRAST)
    chosen = images if len(kept) == len(images) else images[kept]
    if len(chosen) < 2:
        return _none()
    spectra = np.concatenate([np.abs(_spectra(_unit(_grey(part))[0])) for part in _parts(chosen)])
    points = _projected(spectra[:: -(-len(chosen) // SAMPLE)], _parts(spectra))
    reach = max(REACH, sqrt(2 - 2 * correlation))

    def compared(first: Indices, second: Indices) -> Pairs:
        apart = spectra[first] - spectra[second]
        near = np.einsum("ij,ij->i", apart, apart) <= reach**2
        first, second = first[near], second[near]
        if not len(first):
            return _none()
        found, shift, gain = _aligned(_grey(chosen[first]), _grey(chosen[second]))
        distance = np.sqrt(_squares(chosen, first, second)) / 255
        pairs = Pairs(kept[first], kept[second], distance, found, shift, gain)
        return pairs[found >= correlation]

    return _collected(points, reach, compared, threads, on_progress)


def _collected(
    points: NDArray[np.float32],
    radius: float,
    compared: Callable[[Indices, Indices], Pairs],
    threads: int,
    on_progress: Progress,
) -> Pairs:
    """Return the pairs that `compared` leaves of those whose points are at most `radius` apart."""
    # -|p - q|² / 2 = p·q - |p|² / 2 - |q|² / 2: a product of vectors with two more numbers each.
    half = np.einsum("ij,ij->i", points, points)[:, None] / 2
    one = np.ones_like(half)
    left, right = np.hstack([points, -half, one]), np.hstack([points, one, -half])
    limit = -(radius**2) / 2 - ROUNDING * float(half.max())
    found, count = [_none()], 0
    # Threads of the BLAS library's own would wait for each other at every small block.
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(threads) as pool:
        starts = range(0, len(points), ROWS)
        search = partial(_searched, left, right, limit, compared)
        try:
            for start, pairs in zip(starts, pool.map(search, starts), strict=True):
                found.append(pairs)
                count += len(pairs)
                if count > MOST_PAIRS:
                    raise TooManyPairsError
                if on_progress:
                    on_progress(min(start + ROWS, len(points)), len(points))
        finally:
            pool.shutdown(cancel_futures=True)
    pairs = _joined(found)
    return pairs[np.lexsort((pairs.second, pairs.first))]


def _searched(
    left: NDArray[np.float32],
    right: NDArray[np.float32],
    limit: float,
    compared: Callable[[Indices, Indices], Pairs],
    start: int,
) -> Pairs:
    """Return the pairs of some images and all after them, of a product `limit` or above."""
    rows = left[start : start + ROWS]
    held = np.empty((len(rows), COLUMNS), np.float32)
    candidates, waiting, found, count = [], 0, [_none()], 0
    for column in range(start, len(right), COLUMNS):
        columns = right[column : column + COLUMNS]
        block = np.matmul(rows, columns.T, out=held[:, : len(columns)])
        first, second = np.divmod(np.flatnonzero(block >= limit), len(columns))
        first, second = first + start, second + column
        above = first < second
        candidates.append((first[above], second[above]))
        waiting += len(first)
        if waiting >= CHUNK or column + COLUMNS >= len(right):
            first, second = map(np.concatenate, zip(*candidates, strict=True))
            for at in range(0, len(first), CHUNK):
                found.append(compared(first[at : at + CHUNK], second[at : at + CHUNK]))
                count += len(found[-1])
                if count > MOST_PAIRS:
                    raise TooManyPairsError
            candidates, waiting = [], 0
    return _joined(found)


def _aligned(
    images: NDArray[np.float32], others: NDArray[np.float32]
) -> tuple[NDArray[np.float64], NDArray[np.int8], NDArray[np.float64]]:
    """Return correlation (n,), shift (n, 2) and gain (n,) of pairs of grey images, as in `Pairs`.

    Args:
        images: Float32 (n, height, width), 0 to 255.
        others: Float32 (n, height, width).
    """
    height, width = images.shape[1:]
    moved, still = (fft.rfft2(_unit(each)[0]) for each in (images, others))
    products = fft.irfft2(moved.conj() * still, s=(height, width))
    offsets = [(down, across) for down in (0, -1, 1) for across in (0, -1, 1)]
    best = np.stack([products[:, down, across] for down, across in offsets]).argmax(axis=0)
    correlation, gain = np.zeros(len(images)), np.zeros(len(images))
    for place, (down, across) in enumerate(offsets):
        at = np.flatnonzero(best == place)
        if not len(at):
            continue
        (from_row, to_row), (from_column, to_column) = _overlap(down), _overlap(across)
        correlation[at], gain[at] = _correlation(
            images[at][:, from_row, from_column].reshape(len(at), -1),
            others[at][:, to_row, to_column].reshape(len(at), -1),
        )
    return correlation, np.array(offsets, np.int8)[best], gain


def _overlap(shift: int) -> tuple[slice, slice]:
    """Return which rows of an image that is shifted lie on which rows of another."""
    if shift == 0:
        return slice(None), slice(None)
    return (slice(-1), slice(1, None)) if shift > 0 else (slice(1, None), slice(-1))


def _correlation(
    x: NDArray[np.float32], y: NDArray[np.float32]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the correlation coefficients of rows (n, pixels), and how much steeper y is than x.

    The line from the darker to the brighter row is fitted to the pixels that are white in neither,
    unless they have too little contrast. Where it leads beyond white it is cut off, as brightening
    does; the coefficient is that of the line and the brighter row.
    """
    swapped = x.sum(axis=1) > y.sum(axis=1)
    darker, brighter = np.where(swapped[:, None], (y, x), (x, y))
    used = (darker < WHITE) & (brighter < WHITE)
    whole, part = (_moments(darker, brighter, mask) for mask in (np.ones_like(used), used))
    mean, other, square, product = np.where(part[2] >= SHARED**2 * whole[2], part, whole)
    # A negative of an image is no copy of it.
    slope = np.maximum(product, 0) / np.maximum(square, 1)
    line = slope[:, None] * (darker - mean[:, None]) + other[:, None]
    line = line.clip(0, WHITE).astype(np.float32)
    _, _, square, product = _moments(line, brighter, np.ones_like(used))
    norms = np.sqrt(square * _moments(brighter, brighter, np.ones_like(used))[2])
    with np.errstate(divide="ignore"):
        return product / np.maximum(norms, 1e-6), np.where(swapped, 1 / slope, slope)


def _moments(
    x: NDArray[np.float32], y: NDArray[np.float32], used: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Return x̄, ȳ, Σ(x - x̄)² and Σ(x - x̄)(y - ȳ) of the used pixels of rows, float64 (4, n)."""
    count = np.maximum(used.sum(axis=1), 1)
    means = [np.where(used, each, 0).sum(axis=1, dtype=np.float64) / count for each in (x, y)]
    apart, other = (
        np.where(used, each - mean[:, None].astype(np.float32), 0)
        for each, mean in zip((x, y), means, strict=True)
    )
    return np.stack(
        [
            *means,
            np.einsum("ij,ij->i", apart, apart),
            np.einsum("ij,ij->i", apart, other),
        ]
    )


def _projected(
    sample: NDArray[np.float32], parts: Iterable[NDArray[np.float32]]
) -> NDArray[np.float32]:
    """Return the leading principal components of rows, those of a sample, float32 (n, ≤ 64)."""
    mean = sample.mean(axis=0)
    centred = sample - mean
    _, axes = np.linalg.eigh((centred.T @ centred).astype(np.float64))
    basis = axes[:, -COMPONENTS:].astype(np.float32)
    return np.concatenate([(part - mean) @ basis for part in parts])


def _spectra(images: NDArray[np.float32]) -> NDArray[np.complex64]:
    """Return the coarse part of Fourier transforms, scaled so that it lengthens no image.

    Args:
        images: Float32 (n, height, width).

    Returns:
        Complex64 (n, frequencies), for real images without the half that repeats the other.
    """
    height, width = images.shape[1:]
    found = fft.rfft2(images, norm="ortho")
    repeated = np.full(found.shape[2], sqrt(2), np.float32)
    repeated[0] = 1
    if width % 2 == 0:
        repeated[-1] = 1
    rows = np.abs(fft.fftfreq(height, 1 / height)) < FREQUENCIES
    coarse = (found * repeated)[:, rows, :FREQUENCIES]
    spectra: NDArray[np.complex64] = coarse.reshape(len(images), -1)
    return spectra


def _unit(images: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return images less their means, of norm 1 (0 if flat), and the norms (n,) that they had."""
    centred = images - images.mean(axis=(1, 2), keepdims=True)
    norms = np.sqrt(np.einsum("ijk,ijk->i", centred, centred))
    return centred / np.maximum(norms, 1e-6)[:, None, None], norms


def _grey(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return images as float32 (n, height, width), 0 to 255."""
    return (images.mean(axis=3) if images.ndim == 4 else images).astype(np.float32)


def _squares(images: NDArray[np.uint8], first: Indices, second: Indices) -> NDArray[np.float32]:
    """Return the squared L2 distances of pairs in grey levels, exact up to 2^24."""
    # Sums of whole numbers, which float32 has all up to 2^24, a distance of 16 of pixels / 255.
    apart = images[first].astype(np.float32) - images[second]
    apart = apart.reshape(len(apart), -1)
    squares: NDArray[np.float32] = np.einsum("ij,ij->i", apart, apart)
    return squares


def _parts(array: NDArray[Any]) -> Iterator[NDArray[Any]]:
    return (array[at : at + CHUNK] for at in range(0, len(array), CHUNK))


def _joined(parts: Sequence[Pairs]) -> Pairs:
    return Pairs(*map(np.concatenate, zip(*(vars(each).values() for each in parts), strict=True)))


def _none() -> Pairs:
    whole, real = np.zeros(0, np.int64), np.zeros(0)
    return Pairs(whole, whole, real, real, np.zeros((0, 2), np.int8), real)
