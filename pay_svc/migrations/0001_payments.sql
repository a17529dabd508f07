CREATE TABLE payments (
    id uuid NOT NULL,
    order_id uuid PRIMARY KEY,        -- one payment per order
    owner text NOT NULL,              -- '' for an order that was canceled before anything was tried
    booking jsonb,
    currency text NOT NULL,
    amount numeric NOT NULL,
    refunded numeric NOT NULL,
    status text NOT NULL,             -- derived by domain.Payment.status
    card_brand text,
    card_last4 text,
    card_fingerprint bytea,           -- keyed hash; the number itself is kept nowhere
    attempt_id uuid,
    attempt_open_since timestamptz,   -- the intent: the processor was asked, its answer is not stored yet
    decline_reason text NOT NULL,
    approval_no text NOT NULL,
    approved_at timestamptz,
    cancel_asked_at timestamptz,
    canceled_at timestamptz,
    version bigint NOT NULL,
    revision bigint NOT NULL DEFAULT 1,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    next_try_at timestamptz NOT NULL DEFAULT now(),  -- when the settling job looks at it again
    tries integer NOT NULL DEFAULT 0,                -- how often it has, since the last change
    -- Nothing is given back that was not taken.
    CONSTRAINT payments_refund_within_amount CHECK (refunded BETWEEN 0 AND amount)
) WITH (fillfactor = 80);             -- room for updates in place

CREATE INDEX payments_owner ON payments (owner, order_id DESC);  -- ListPayments of a guest

-- What the settling job looks for: open tries, and cancels that are not finished.
CREATE INDEX payments_unsettled ON payments (next_try_at)
    WHERE attempt_open_since IS NOT NULL OR (cancel_asked_at IS NOT NULL AND canceled_at IS NULL);
