"""Compiled loops of a learner's step in numpy: targets, loss, Adam and the soft target update.

Every array is float32 unless said otherwise.
"""

from __future__ import annotations

import numpy as np

from pdqn.jit import compiled


@compiled
def add_bootstrapped(targets, discount, rows, chooser, values, mask):
    """Add the discounted value of the best valid action to targets; 0 where none is valid.

    As in torch, a value that is not a number is the largest.

    Args:
        targets: [batch], changed.
        discount: [batch].
        rows: int64[n], rows of the batch that bootstrap.
        chooser: [n, actions], values that choose the action.
        values: [n, actions], values that evaluate it.
        mask: bool[batch, actions], valid actions; of no row if all are valid.
    """
    for k in range(len(rows)):
        row = rows[k]
        best, found = -1, np.float32(0.0)
        for a in range(chooser.shape[1]):
            if len(mask) and not mask[row, a]:
                continue
            value = chooser[k, a]
            if best < 0 or value > found or (np.isnan(value) and not np.isnan(found)):
                best, found = a, value
        if best >= 0:
            targets[row] += discount[row] * values[k, best]


@compiled
def huber_backward(values, action, targets, weight, delta, gradient, priorities, losses):
    """Compute each row's weighted Huber loss and its gradient; return the mean Q taken.

    Args:
        values: [batch, actions].
        action: int64[batch], actions taken.
        targets: [batch].
        weight: [batch], importance.
        delta: error from which the loss is linear.
        gradient: [batch, actions], overwritten: of the mean loss, by the values.
        priorities: [batch], overwritten: absolute errors.
        losses: [batch], overwritten: weighted.
    """
    batch = len(targets)
    gradient[:] = 0.0
    total = np.float32(0.0)
    for i in range(batch):
        chosen = values[i, action[i]]
        error = chosen - targets[i]
        size = abs(error)
        total += chosen
        priorities[i] = size
        if size < delta:
            losses[i] = weight[i] * (np.float32(0.5) * error * error)
            slope = error
        else:
            losses[i] = weight[i] * (delta * (size - np.float32(0.5) * delta))
            slope = delta if error > 0 else -delta
        if np.isnan(error):
            slope = error
        gradient[i, action[i]] = weight[i] * slope / np.float32(batch)
    return total / np.float32(batch)


@compiled(reassociates=True)
def adam(parameters, gradient, mean, square, scale, step_size, beta1, beta2, root, epsilon):
    """Take a step of Adam (Kingma and Ba 2015, algorithm 1), as torch does.

    Args:
        parameters: [count], changed.
        gradient: [count].
        mean: [count], moving average of the gradient, changed.
        square: [count], moving average of its square, changed.
        scale: factor of the gradient, which clips its norm.
        step_size: step size, over the bias correction of the mean.
        beta1: decay of the mean.
        beta2: decay of the square.
        root: square root of the bias correction of the square.
        epsilon: added to the denominator.
    """
    one = np.float32(1.0)
    for i in range(len(parameters)):
        slope = scale * gradient[i]
        mean[i] += (one - beta1) * (slope - mean[i])
        square[i] = beta2 * square[i] + (one - beta2) * slope * slope
        parameters[i] -= step_size * mean[i] / (np.sqrt(square[i]) / root + epsilon)


@compiled(reassociates=True)
def squared_norm(values):
    """Return the sum of the squares of values, [count]; infinity if it is too large."""
    total = np.float32(0.0)
    for i in range(len(values)):
        total += values[i] * values[i]
    return total


@compiled
def follow(theirs, ours, rate):
    """Move one array towards another by a share of the distance: a soft target update."""
    for i in range(len(theirs)):
        theirs[i] += rate * (ours[i] - theirs[i])
