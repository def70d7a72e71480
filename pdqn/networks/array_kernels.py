"""Compiled loops of the layers in ``array_network``: what lies between its products of matrices.

Each replaces several passes over an array by one. All arrays are float32 unless said otherwise.
"""

from __future__ import annotations

import numpy as np

from pdqn.jit import compiled


@compiled
def _relu(value):
    """Return the value, or 0 if it is negative; what is not a number stays so, as in torch."""
    return np.float32(0.0) if value <= 0 else value


@compiled
def add_relu(hidden, bias):
    """Replace hidden, [n, width], by relu(hidden + bias)."""
    for i in range(hidden.shape[0]):
        for j in range(hidden.shape[1]):
            hidden[i, j] = _relu(hidden[i, j] + bias[j])


@compiled
def relu_backward(gradient, output, bias_gradient):
    """Take a gradient back through ``add_relu``.

    Args:
        gradient: [n, width], of the output; overwritten by that of the input.
        output: [n, width], of the forward pass.
        bias_gradient: [width], overwritten.
    """
    bias_gradient[:] = 0.0
    for i in range(gradient.shape[0]):
        for j in range(gradient.shape[1]):
            if output[i, j] <= 0:
                gradient[i, j] = 0.0
            bias_gradient[j] += gradient[i, j]


@compiled(reassociates=True)
def normalise(hidden, bias, gain, shift, epsilon, rectified, scales, output):
    """Compute gain * normalised(hidden + bias) + shift, where rows are normalised.

    Args:
        hidden: [n, width], replaced by the normalised rows.
        bias: [width].
        gain: [width].
        shift: [width].
        epsilon: added to the variance.
        rectified: whether a rectifier follows.
        scales: [n], overwritten by one over each row's standard deviation.
        output: [n, width], overwritten.
    """
    width = hidden.shape[1]
    for i in range(hidden.shape[0]):
        row, out = hidden[i], output[i]
        total = np.float32(0.0)
        for j in range(width):
            row[j] += bias[j]
            total += row[j]
        mean = total / np.float32(width)
        squares = np.float32(0.0)
        for j in range(width):
            row[j] -= mean
            squares += row[j] * row[j]
        scale = np.float32(1.0) / np.sqrt(squares / np.float32(width) + np.float32(epsilon))
        scales[i] = scale
        for j in range(width):
            row[j] *= scale
            value = row[j] * gain[j] + shift[j]
            out[j] = _relu(value) if rectified else value


@compiled(reassociates=True)
def normalise_backward(
    gradient, output, normal, scales, gain, rectified, bias_gradient, gain_gradient, shift_gradient
):
    """Take a gradient back through ``normalise``.

    Args:
        gradient: [n, width], of the output; overwritten by that of the input.
        output: [n, width], of the forward pass.
        normal: [n, width], what that left in ``hidden``.
        scales: [n], of the forward pass.
        gain: [width].
        rectified: whether a rectifier followed.
        bias_gradient: [width], overwritten.
        gain_gradient: [width], overwritten.
        shift_gradient: [width], overwritten.
    """
    count, width = gradient.shape
    bias_gradient[:], gain_gradient[:], shift_gradient[:] = 0.0, 0.0, 0.0
    for i in range(count):
        ours, out, row = gradient[i], output[i], normal[i]
        mean, along = np.float32(0.0), np.float32(0.0)
        for j in range(width):
            value = np.float32(0.0) if rectified and out[j] <= 0 else ours[j]
            shift_gradient[j] += value
            gain_gradient[j] += value * row[j]
            value *= gain[j]
            ours[j] = value
            mean += value
            along += value * row[j]
        mean /= np.float32(width)
        along /= np.float32(width)
        for j in range(width):
            ours[j] = scales[i] * (ours[j] - mean - row[j] * along)
            bias_gradient[j] += ours[j]


@compiled
def patches(images, columns):
    """Lay out the 3 x 3 patches of images, for a convolution as one product.

    Args:
        images: [n, channels, height, width].
        columns: [n, (height - 2) * (width - 2), channels * 9], overwritten. The order within a
            patch is that of a convolution's weights.
    """
    count, channels, height, width = images.shape
    for i in range(count):
        for y in range(height - 2):
            for x in range(width - 2):
                column = columns[i, y * (width - 2) + x]
                k = 0
                for c in range(channels):
                    for dy in range(3):
                        for dx in range(3):
                            column[k] = images[i, c, y + dy, x + dx]
                            k += 1


@compiled
def places_to_features(places, features):
    """Put the channels of places first.

    Args:
        places: [n * area, channels].
        features: [n, channels * area], overwritten; may have any strides.
    """
    channels = places.shape[1]
    area = features.shape[1] // channels
    for i in range(features.shape[0]):
        for c in range(channels):
            for p in range(area):
                features[i, c * area + p] = places[i * area + p, c]


@compiled
def features_to_places(features, places):
    """Put the channels of features last: the reverse of ``places_to_features``.

    Args:
        features: [n, channels * area]; may have any strides.
        places: [n * area, channels], overwritten.
    """
    channels = places.shape[1]
    area = features.shape[1] // channels
    for i in range(features.shape[0]):
        for c in range(channels):
            for p in range(area):
                places[i * area + p, c] = features[i, c * area + p]


@compiled
def _corners(height, width, side):
    """Return the top and left of every window of an image, int64[windows, 2], row by row."""
    corners = [(top, left) for top in range(0, height, side) for left in range(0, width, side)]
    return np.array(corners)


@compiled
def _largest_products(first, second, corner, side, largest, places):
    """Fill the largest product of two branches in a window, and its place, for every channel.

    Of equal products the first is taken, and what is not a number before all others, as in torch.

    Args:
        first: [height, width, channels], of one image.
        second: likewise.
        corner: the window's top and left.
        side: of the windows, which do not overlap; the last of a row or column may be smaller.
        largest: [channels], overwritten.
        places: int32[channels], overwritten; y * width + x.
    """
    height, width = first.shape[:2]
    top, left = corner[0], corner[1]
    largest[:] = -np.inf
    places[:] = top * width + left
    for y in range(top, min(top + side, height)):
        for x in range(left, min(left + side, width)):
            one, other = first[y, x], second[y, x]
            place = np.int32(y * width + x)
            for c in range(len(largest)):
                product = one[c] * other[c]
                takes = product > largest[c] or np.isnan(product)
                largest[c] = product if takes else largest[c]
                places[c] = place if takes else places[c]


@compiled
def gate_and_pool(first, second, side, features):
    """Multiply two branches and take the largest product of each window, with channels first.

    Args:
        first: [n, height, width, channels].
        second: likewise.
        side: of the windows.
        features: [n, channels * windows], overwritten; may have any strides.
    """
    count, height, width, channels = first.shape
    corners = _corners(height, width, side)
    windows = len(corners)
    largest, places = np.empty(channels, np.float32), np.empty(channels, np.int32)
    for i in range(count):
        for w in range(windows):
            _largest_products(first[i], second[i], corners[w], side, largest, places)
            for c in range(channels):
                features[i, c * windows + w] = largest[c]


@compiled
def gate_and_pool_backward(gradient, first, second, side, first_slopes, second_slopes):
    """Take a gradient back through ``gate_and_pool``.

    Args:
        gradient: [n, channels * windows], of the features.
        first: [n, height, width, channels].
        second: likewise.
        side: of the windows.
        first_slopes: [n, height * width, channels], overwritten by the gradient of ``first``.
        second_slopes: likewise, of ``second``.
    """
    count, height, width, channels = first.shape
    corners = _corners(height, width, side)
    windows = len(corners)
    largest, places = np.empty(channels, np.float32), np.empty(channels, np.int32)
    first_slopes[:], second_slopes[:] = 0.0, 0.0
    for i in range(count):
        one, other = first[i].reshape(-1, channels), second[i].reshape(-1, channels)
        for w in range(windows):
            _largest_products(first[i], second[i], corners[w], side, largest, places)
            for c in range(channels):
                k, slope = places[c], gradient[i, c * windows + w]
                first_slopes[i, k, c] = slope * other[k, c]
                second_slopes[i, k, c] = slope * one[k, c]


@compiled
def sum_rows(rows, total):
    """Fill total, [width], with the sum of rows, [n, width]."""
    total[:] = 0.0
    for i in range(rows.shape[0]):
        for j in range(rows.shape[1]):
            total[j] += rows[i, j]


@compiled
def dueling(advantages, advantage_bias, common, common_bias, values):
    """Compute common + advantage - mean advantage (Wang et al. 2016, eq. 9), for every atom.

    Args:
        advantages: [n, actions * atoms], without the bias.
        advantage_bias: [actions * atoms].
        common: [n, atoms], without the bias.
        common_bias: [atoms].
        values: [n, actions * atoms], overwritten.
    """
    width, atoms = advantages.shape[1], common.shape[1]
    for i in range(advantages.shape[0]):
        for k in range(atoms):
            mean = np.float32(0.0)
            for a in range(k, width, atoms):
                values[i, a] = advantages[i, a] + advantage_bias[a]
                mean += values[i, a]
            offset = common[i, k] + common_bias[k] - mean / np.float32(width // atoms)
            for a in range(k, width, atoms):
                values[i, a] += offset
