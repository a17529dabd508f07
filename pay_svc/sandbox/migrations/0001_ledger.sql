-- The sandbox processor's own books: what really happened to which key.
CREATE TABLE ledger (
    key uuid PRIMARY KEY,             -- a key has one truth
    order_id text NOT NULL,           -- the merchant's reference; '' for a key that was closed before it was charged
    outcome text NOT NULL CHECK (outcome IN ('CHARGED', 'REFUSED')),
    reason text NOT NULL,             -- of a refusal
    currency text NOT NULL,
    amount numeric NOT NULL,
    approval_no text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    refunded_at timestamptz
);
CREATE INDEX ledger_order ON ledger (order_id);  -- the audit asks what an order was charged
