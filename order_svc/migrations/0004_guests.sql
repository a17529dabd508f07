-- What a guest holds without paying: the orders that may be unpaid, their nights, and whether they came with a card.
CREATE TABLE guests (
    owner text PRIMARY KEY,
    orders uuid[] NOT NULL,
    nights bigint[] NOT NULL,
    pays boolean[] NOT NULL,
    changed_at timestamptz NOT NULL   -- to the day, so that the index seldom changes
) WITH (fillfactor = 50);             -- rewritten by each of the guest's orders

CREATE INDEX guests_changed ON guests (changed_at);  -- what the pruning job looks for
