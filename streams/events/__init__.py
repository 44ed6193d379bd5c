"""Record bytes to events: envelope, codecs, audio decoding, dead letters, topic names. No Kafka client."""
