"""What feeds the input topics: recordings, replay, simulator, training windows."""
