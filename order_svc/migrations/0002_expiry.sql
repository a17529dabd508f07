ALTER TABLE orders
    -- Whether its nights are taken from the allotment. They are given back by the statement that clears it, so exactly
    -- once, whatever a release knows of the order's facts.
    ADD COLUMN holds_nights boolean NOT NULL DEFAULT true,
    ADD COLUMN next_expiry_at timestamptz,    -- when an order that is due is looked at again
    ADD COLUMN time_returned_at timestamptz;  -- when it last got back time for which expiry was stopped

-- At most one row: since when pay_svc can't be reached, and, while unpaid orders get that time back, until when.
CREATE TABLE payment_outage (
    began_at timestamptz PRIMARY KEY,
    ended_at timestamptz,
    one boolean NOT NULL DEFAULT true CONSTRAINT payment_outage_is_one UNIQUE CHECK (one)
);

-- At most one row: when any replica last reached pay_svc.
CREATE TABLE payment_contact (
    one boolean PRIMARY KEY DEFAULT true CONSTRAINT payment_contact_is_one CHECK (one),
    reached_at timestamptz NOT NULL
);

-- The version of a room type that its nights are opened and sized for; a job brings them up to date.
ALTER TABLE room_types ADD COLUMN applied_version bigint NOT NULL DEFAULT 0;
