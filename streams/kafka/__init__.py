"""Everything that talks to Kafka: clients, topics, consumer, offset ledger, producer, embedded broker."""
