"""Which model version runs, and who answers: worker, supervisor, backfill, promotion, queries, health."""
