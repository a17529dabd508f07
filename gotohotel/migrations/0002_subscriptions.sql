-- Since when this service hears of a subject: a consumer that is widened hears of what is published from then on. The
-- audit demands no effect of what came before.
CREATE TABLE subscriptions (
    subject text PRIMARY KEY,
    heard_since timestamptz NOT NULL
);
