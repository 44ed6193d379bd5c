"""Everything that learns: encoders, fusion, training. torch, no Kafka, no HTTP; importable alone."""
