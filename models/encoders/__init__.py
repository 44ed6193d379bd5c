"""One encoder a modality; each takes padded, masked batches and gives a vector of two parts, shared and private."""
