"""What predictions are worth: figures with their intervals, from arrays alone."""
