-- Events that happened here, written in the transaction of the aggregate that they happened to.
CREATE TABLE outbox (
    event_id uuid PRIMARY KEY,                -- UUIDv7, the Nats-Msg-Id
    aggregate_id text NOT NULL,
    aggregate_version bigint NOT NULL CHECK (aggregate_version > 0),
    type text NOT NULL,                       -- the message's full name, which is the subject too
    payload bytea NOT NULL,
    traceparent text NOT NULL,
    occurred_at timestamptz NOT NULL,
    published_at timestamptz,                 -- when the stream acknowledged it
    -- Two writers can't announce the same version: an aggregate's events are 1, 2, 3, …
    UNIQUE (aggregate_id, aggregate_version)
);

-- The relay's question: the oldest unpublished event of each aggregate.
CREATE INDEX outbox_unpublished ON outbox (aggregate_id, aggregate_version) WHERE published_at IS NULL;

-- Events of others that were handled here, claimed in the transaction of their effects.
CREATE TABLE inbox (
    event_id uuid PRIMARY KEY,                -- an event has its effects once
    received_at timestamptz NOT NULL DEFAULT now()
);

-- Requests with a request id that were, or are being, answered here.
CREATE TABLE requests (
    subject text NOT NULL,                    -- another guest's id is another request
    method text NOT NULL,
    request_id text NOT NULL,
    fingerprint bytea NOT NULL,               -- a keyed hash of the body
    resource_id text,                         -- what the request made, if it made something
    response bytea,                           -- null until it is answered
    claimed_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT requests_once PRIMARY KEY (subject, method, request_id)
);
CREATE INDEX requests_claimed_at ON requests (claimed_at);  -- for deleting old ones
