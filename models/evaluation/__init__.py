"""Measuring models: retrieval and fusion reports, and the metrics they are made of."""
