-- outside a transaction
CREATE INDEX CONCURRENTLY IF NOT EXISTS payments_numbers  -- those to erase
    ON payments ((booking ->> 'check_out'))
    WHERE booking ->> 'phone_no' <> '';
