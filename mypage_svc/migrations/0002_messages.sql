-- What guests are told by KakaoTalk: one message for each change of state, written by the transaction that learned of it.
CREATE TABLE messages (
    order_id uuid NOT NULL,
    change text NOT NULL,             -- the template, with a number if the change can happen again
    template text NOT NULL,
    phone_no text NOT NULL,           -- as typed; '' if the guest gave none
    variables jsonb NOT NULL,         -- of the template
    occurred_at timestamptz NOT NULL, -- the change
    status text NOT NULL,             -- PENDING, ACCEPTED, DELIVERED, FAILED, SKIPPED
    code text NOT NULL DEFAULT '',    -- why it is FAILED or SKIPPED: the provider's code, or ours
    channel text NOT NULL DEFAULT '', -- KAKAO or SMS, once it is delivered
    attempt bigint NOT NULL DEFAULT 1, -- counts messages that the provider took and could not deliver
    tries bigint NOT NULL DEFAULT 0, -- of handing this attempt over
    next_try_at timestamptz NOT NULL DEFAULT now(),
    provider text NOT NULL DEFAULT '', -- which has it
    request_id text NOT NULL DEFAULT '', -- the provider's, and the recipient's number in it
    recipient_seq bigint NOT NULL DEFAULT 0,
    updated_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (order_id, change)    -- one message for each change
) WITH (fillfactor = 80);

CREATE INDEX messages_pending ON messages (next_try_at) WHERE status = 'PENDING';
CREATE INDEX messages_in_order ON messages (order_id, occurred_at, change) WHERE status = 'PENDING';
CREATE INDEX messages_accepted ON messages (next_try_at) WHERE status = 'ACCEPTED';
