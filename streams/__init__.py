"""Everything that moves: Kafka in, windows, inference, drift, store, incidents out."""
