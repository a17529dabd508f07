-- Who confirmed, and who asked for the end: {"role", "subject"}; null if nobody did, or if the first release stored it.
ALTER TABLE reservations ADD COLUMN confirmed_by jsonb;
ALTER TABLE reservations ADD COLUMN ending_by jsonb;
