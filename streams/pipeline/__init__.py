"""One partition's processing: ingest, recovery, embedding, scoring, commit, publishing; wired in one place."""
