-- The attempt that the card processor has answered to know: only such a one is confirmed.
ALTER TABLE payments ADD COLUMN created_attempt_id uuid;
