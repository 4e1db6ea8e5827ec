"""From a recipe to data and networks: what each task makes of its sections, checked as a whole."""
