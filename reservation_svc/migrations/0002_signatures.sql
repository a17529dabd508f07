-- Orders that were placed before that time have no signature of order_svc. Empty in a hotel that is new: its first
-- migration is as old as this one.
CREATE TABLE unsigned_before (at timestamptz PRIMARY KEY);
INSERT INTO unsigned_before (at)
SELECT now()
FROM schema_migrations
WHERE component = 'reservation_svc'
  AND number = 1
  AND applied_at < now() - interval '1 minute';
