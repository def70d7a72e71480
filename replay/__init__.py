"""Replay: the prioritized buffer, its rate limiter, and the server around them."""
