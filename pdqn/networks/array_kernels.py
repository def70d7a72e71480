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
def normalise_relu(hidden, bias, gain, shift, epsilon, scales, output):
    """Compute relu(gain * normalised(hidden + bias) + shift), where rows are normalised.

    Args:
        hidden: [n, width], replaced by the normalised rows.
        bias: [width].
        gain: [width].
        shift: [width].
        epsilon: added to the variance.
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
            out[j] = _relu(row[j] * gain[j] + shift[j])


@compiled(reassociates=True)
def normalise_relu_backward(
    gradient, output, normal, scales, gain, bias_gradient, gain_gradient, shift_gradient
):
    """Take a gradient back through ``normalise_relu``.

    Args:
        gradient: [n, width], of the output; overwritten by that of the input.
        output: [n, width], of the forward pass.
        normal: [n, width], what that left in ``hidden``.
        scales: [n], of the forward pass.
        gain: [width].
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
            value = np.float32(0.0) if out[j] <= 0 else ours[j]
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
def places_to_features(places, bias, features):
    """Compute relu(places + bias) with channels first.

    Args:
        places: [n * area, channels].
        bias: [channels].
        features: [n, channels * area], overwritten; may have any strides.
    """
    channels = places.shape[1]
    area = features.shape[1] // channels
    for i in range(features.shape[0]):
        for c in range(channels):
            for p in range(area):
                features[i, c * area + p] = _relu(places[i * area + p, c] + bias[c])


@compiled
def features_to_places(gradient, features, bias_gradient, places):
    """Take a gradient back through ``places_to_features``.

    Args:
        gradient: [n, channels * area], of the features.
        features: [n, channels * area], of the forward pass.
        bias_gradient: [channels], overwritten.
        places: [n * area, channels], overwritten by the gradient.
    """
    channels = places.shape[1]
    area = features.shape[1] // channels
    bias_gradient[:] = 0.0
    for i in range(features.shape[0]):
        for c in range(channels):
            for p in range(area):
                k = c * area + p
                value = np.float32(0.0) if features[i, k] <= 0 else gradient[i, k]
                places[i * area + p, c] = value
                bias_gradient[c] += value


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
