-- When cards were declined for this order.
ALTER TABLE payments ADD COLUMN declined_at timestamptz[] NOT NULL DEFAULT '{}';

-- A guest's orders with attempts that were declined in the last hour, or are open.
CREATE TABLE guest_attempts (
    owner text PRIMARY KEY,
    orders uuid[] NOT NULL,
    revisions bigint[] NOT NULL,      -- of each payment, once its attempt is stored
    changed_at timestamptz NOT NULL   -- to the day, so that the index seldom changes
) WITH (fillfactor = 50);             -- rewritten by each of the guest's attempts

CREATE INDEX guest_attempts_changed ON guest_attempts (changed_at);  -- what the pruning job looks for
