-- Who asked for the cancel: {"role", "subject"}; null if nobody did, or if the first release stored it.
ALTER TABLE payments ADD COLUMN canceled_by jsonb;
