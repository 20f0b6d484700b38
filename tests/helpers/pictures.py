"""What a picture shows, and what it is made of."""

import io

import numpy as np


def make_predictions(n, classes=10, seed=1):
    generator = np.random.default_rng(seed)
    probabilities = generator.dirichlet(np.full(classes, 0.3), n).astype(np.float32)
    labels = np.where(
        generator.uniform(size=n) < 0.7,
        probabilities.argmax(axis=1),
        generator.integers(0, classes, n),
    )
    return probabilities, labels.astype(np.uint8)


def png(figure):
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()


def texts(figure):
    """All that is written on a figure, tick labels in view included."""
    found = list(figure.artists)
    for axes in [each for top in figure.axes for each in (top, *top.child_axes)]:
        found += axes.texts
        if axes.axison:
            found += [axes.xaxis.label, axes.yaxis.label, axes._left_title]
        for axis in (axes.xaxis, axes.yaxis) if axes.axison else ():
            low, high = sorted(axis.get_view_interval())
            places = zip(axis.get_ticklocs(), axis.get_ticklabels(), strict=False)
            found += [label for place, label in places if low <= place <= high]
    return [text for text in found if text.get_text()]


def words(figure):
    return [text.get_text() for text in texts(figure)]


def corners(text):
    """A text's rectangle, turned with the text, in pixels."""
    box = text.get_window_extent()
    if not (angle := text.get_rotation()):
        return box.corners()[[0, 1, 3, 2]]
    text.set_rotation(0)
    flat = text.get_window_extent()
    text.set_rotation(angle)
    half = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * (flat.width / 2, flat.height / 2)
    turn = np.deg2rad(angle)
    matrix = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    return half @ matrix + np.array([box.x0 + box.x1, box.y0 + box.y1]) / 2


def overlap(one, other):
    """Whether two rectangles share more than a hair: no side separates them."""
    for box in (one, other):
        for edge in (box[1] - box[0], box[2] - box[1]):
            axis = edge / np.linalg.norm(edge)
            a, b = one @ axis, other @ axis
            if min(a.max(), b.max()) - max(a.min(), b.min()) < 1:
                return False
    return True


def assert_legible(figure):
    figure.canvas.draw()
    written = texts(figure)
    boxes = np.array([corners(text) for text in written])
    low, high = boxes.min(axis=1), boxes.max(axis=1)
    out = (low < 0).any(axis=1) | (high > figure.canvas.get_width_height()).any(axis=1)
    assert not out.any(), f"{written[out.argmax()]} leaves the page"
    # Upright bounds first: the exact question is slow to ask of every pair of a large matrix.
    near = ((low[:, None] < high) & (high[:, None] > low)).all(axis=2)
    for one, other in np.argwhere(np.triu(near, 1)):
        assert not overlap(boxes[one], boxes[other]), f"{written[one]} and {written[other]} overlap"
