"""Sources of events: recordings and their replay, the simulated plant, training windows."""
