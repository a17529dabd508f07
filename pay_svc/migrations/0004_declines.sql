-- When cards were declined for this order.
ALTER TABLE payments ADD COLUMN declined_at timestamptz[] NOT NULL DEFAULT '{}';

-- A guest's orders with attempts that were declined in the last hour, or are open.
CREATE TABLE guests (
    owner text PRIMARY KEY,
    orders uuid[] NOT NULL,
    changed_at timestamptz NOT NULL DEFAULT now()
) WITH (fillfactor = 50);             -- rewritten by each of the guest's attempts

CREATE INDEX guests_changed ON guests (changed_at);  -- what the pruning job looks for
