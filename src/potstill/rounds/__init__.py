"""Prune, distil, repeat: what is to go, the rounds, other students of the same size."""
