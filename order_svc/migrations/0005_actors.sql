-- Who canceled: {"role", "subject"}; null if nobody did, or if the first release stored it.
ALTER TABLE orders ADD COLUMN canceled_by jsonb;
