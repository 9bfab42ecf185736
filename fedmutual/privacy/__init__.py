"""Differential privacy of what leaves a client: what mechanisms cost, what a store has spent, and noised versions."""
