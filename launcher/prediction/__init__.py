"""The prediction of a run's rates from the cost of each part."""
