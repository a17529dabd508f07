-- outside a transaction
CREATE INDEX CONCURRENTLY IF NOT EXISTS reservations_numbers  -- those to erase
    ON reservations ((booking ->> 'check_out'))
    WHERE booking ->> 'phone_no' <> '';
