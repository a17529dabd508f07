-- outside a transaction
CREATE INDEX CONCURRENTLY IF NOT EXISTS orders_numbers ON orders (check_out) WHERE phone_no <> '';  -- those to erase
