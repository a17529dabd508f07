CREATE TABLE mypages (
    order_id uuid PRIMARY KEY,
    owner text,                       -- null until an event has told whose it is; such a page is shown to nobody
    facts jsonb NOT NULL,             -- {source/version: fact}: merging is the same in any order and any number
    updated_at timestamptz NOT NULL
) WITH (fillfactor = 70);             -- room for updates in place

CREATE INDEX mypages_owner ON mypages (owner, order_id DESC);  -- ListMyPages of a guest
