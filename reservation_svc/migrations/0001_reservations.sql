CREATE TABLE reservations (
    order_id uuid PRIMARY KEY,        -- one reservation per order
    booking jsonb,                    -- null: the order ended before its payment was heard of; the desk never sees it
    status text NOT NULL,             -- derived by domain.Reservation.status
    confirmed_at timestamptz,
    confirmation_no text,
    ending_status text,
    ending_reason text,
    ending_asked_at timestamptz,
    ending_binding boolean,
    ended_at timestamptz,
    next_try_at timestamptz NOT NULL DEFAULT now(),  -- when an ending that is not over is carried on
    tries integer NOT NULL DEFAULT 0,
    version bigint NOT NULL,
    revision bigint NOT NULL DEFAULT 1,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    -- The desk tells guests apart by it.
    CONSTRAINT reservations_confirmation_no UNIQUE (confirmation_no)
) WITH (fillfactor = 80);             -- room for updates in place

-- ListReservations of one status, newest order first.
CREATE INDEX reservations_status ON reservations (status, order_id DESC) WHERE booking IS NOT NULL;
-- The job that carries endings through.
CREATE INDEX reservations_ending ON reservations (next_try_at) WHERE ending_status IS NOT NULL AND ended_at IS NULL;

CREATE TABLE room_types (
    id text PRIMARY KEY,
    display_name text NOT NULL,
    capacity integer NOT NULL CHECK (capacity >= 0),
    max_guests integer NOT NULL CHECK (max_guests > 0),
    currency text NOT NULL,
    nightly_rate numeric NOT NULL CHECK (nightly_rate >= 0),
    version bigint NOT NULL
);
