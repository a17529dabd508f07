-- Every movement is an entry of its own: a charge that was given back twice would be seen. What was the table
-- `ledger` is a view now, so that a first release that is started on this data fails and does not charge anew.
LOCK TABLE ledger IN ACCESS EXCLUSIVE MODE;  -- whatever is entered until then is copied

CREATE TABLE entries (
    number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    key uuid NOT NULL,
    kind text NOT NULL CONSTRAINT entries_kind CHECK (kind IN ('CHARGE', 'REFUSAL', 'REFUND')),
    order_id text NOT NULL,           -- the merchant's reference; '' for a key that was closed before it was charged
    reason text NOT NULL,             -- of a refusal
    currency text NOT NULL,
    amount numeric NOT NULL,
    approval_no text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE UNIQUE INDEX entries_one_outcome ON entries (key) WHERE kind IN ('CHARGE', 'REFUSAL');  -- a key has one truth
CREATE UNIQUE INDEX entries_one_refund ON entries (key) WHERE kind = 'REFUND';
CREATE INDEX entries_order ON entries (order_id);  -- the audit asks what an order was charged

INSERT INTO entries (key, kind, order_id, reason, currency, amount, approval_no, created_at)
SELECT key, CASE outcome WHEN 'CHARGED' THEN 'CHARGE' ELSE 'REFUSAL' END, order_id, reason, currency, amount,
       approval_no, created_at
FROM ledger
ORDER BY created_at;

INSERT INTO entries (key, kind, order_id, reason, currency, amount, approval_no, created_at)
SELECT key, 'REFUND', order_id, '', currency, amount, approval_no, refunded_at
FROM ledger
WHERE refunded_at IS NOT NULL;

-- squawk-ignore renaming-table
ALTER TABLE ledger RENAME TO ledger_0001;

CREATE VIEW ledger AS
SELECT
    key,
    order_id,
    CASE kind WHEN 'CHARGE' THEN 'CHARGED' ELSE 'REFUSED' END AS outcome,
    reason,
    currency,
    amount,
    approval_no,
    created_at,
    (SELECT min(created_at) FROM entries AS refund WHERE refund.key = entries.key AND kind = 'REFUND') AS refunded_at,
    (SELECT count(*) FROM entries AS refund WHERE refund.key = entries.key AND kind = 'REFUND') AS refunds
FROM entries
WHERE kind IN ('CHARGE', 'REFUSAL');
