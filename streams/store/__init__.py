"""Where windows are kept: the `VectorStore` protocol and its two implementations."""
