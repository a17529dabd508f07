-- Who canceled: {"role", "subject"}; null if nobody did, or if a release before 0.2 stored it.
ALTER TABLE orders ADD COLUMN canceled_by jsonb;
