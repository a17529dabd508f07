CREATE TABLE reviews (
    order_id uuid PRIMARY KEY,        -- one review per order
    owner text NOT NULL,              -- '' until the payment's event has come
    confirmed boolean NOT NULL,
    text text NOT NULL,               -- '' until it is written
    version bigint NOT NULL,
    revision bigint NOT NULL
);
