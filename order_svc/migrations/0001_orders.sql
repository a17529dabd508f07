-- This service's copy of the desk's room types, fed by RoomTypeChanged.
CREATE TABLE room_types (
    id text PRIMARY KEY,
    version bigint NOT NULL,          -- of the event that it was taken from; an older one changes nothing
    display_name text NOT NULL,
    capacity integer NOT NULL CHECK (capacity >= 0),
    max_guests integer NOT NULL CHECK (max_guests > 0),
    currency text NOT NULL,
    nightly_rate numeric NOT NULL CHECK (nightly_rate >= 0)
);

-- Rooms per night. What may be held is nominal, the room type's capacity, or what was held already when that was
-- lowered: then the night is closed until it fits. Both stand in the row itself, so that whoever waited for its lock
-- calculates with what is true then.
CREATE TABLE allotment (
    room_type text NOT NULL REFERENCES room_types,
    night date NOT NULL,
    nominal integer NOT NULL,
    capacity integer NOT NULL,
    held integer NOT NULL DEFAULT 0 CONSTRAINT allotment_never_negative CHECK (held >= 0),
    PRIMARY KEY (room_type, night),
    -- No room is sold twice.
    CONSTRAINT allotment_held_within_capacity CHECK (held <= capacity),
    -- A closed night shrinks to its nominal capacity with each room that is given back.
    CONSTRAINT allotment_shrinks_to_nominal CHECK (capacity = greatest(held, nominal))
);

CREATE TABLE orders (
    id uuid PRIMARY KEY,              -- UUIDv7: newest first is id descending
    owner text NOT NULL,
    name text NOT NULL,
    phone_no text NOT NULL,
    room_type text NOT NULL,
    guest_cnt integer NOT NULL,
    check_in date NOT NULL,
    check_out date NOT NULL,
    nights_held integer NOT NULL,
    currency text NOT NULL,
    amount numeric NOT NULL,
    refunded numeric NOT NULL DEFAULT 0,
    status text NOT NULL,             -- derived from the facts by domain.status_from
    paid_at timestamptz,
    expired_at timestamptz,
    cancel_asked_at timestamptz,
    payment_canceled_at timestamptz,
    confirmed_at timestamptz,
    rejected_at timestamptz,
    reservation_canceled_at timestamptz,
    confirmation_no text NOT NULL DEFAULT '',
    payment_error_reason text,
    payment_error_message text,
    payment_error_retry_after integer,  -- seconds
    attempt_id uuid,
    attempt_until timestamptz,
    version bigint NOT NULL,
    revision bigint NOT NULL DEFAULT 1,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    expires_at timestamptz NOT NULL,
    -- An order holds every one of its nights or does not exist.
    CONSTRAINT orders_hold_every_night CHECK (nights_held = check_out - check_in)
) WITH (fillfactor = 80);             -- room for updates in place

CREATE INDEX orders_owner ON orders (owner, id DESC);                                     -- ListOrders of a guest
CREATE INDEX orders_unpaid ON orders (expires_at) WHERE status = 'PAYMENT_PENDING';       -- the expiry job
