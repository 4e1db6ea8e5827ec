"""From a network to a weighted sum of losses: taps, pairs of layers, adapters, terms, the objective."""
