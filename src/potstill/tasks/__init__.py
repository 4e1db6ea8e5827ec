"""What is learnt: a task makes batches, gives the supervised loss and reads the predictions."""

from potstill.tasks.classification import Classification

__all__ = ["Classification"]
