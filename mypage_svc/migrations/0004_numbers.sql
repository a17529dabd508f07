-- The orders whose phone number is kept here, in their page or in a message, until some days after the stay.
CREATE TABLE numbers (
    order_id uuid PRIMARY KEY,
    check_out date NOT NULL
);

CREATE INDEX numbers_check_out ON numbers (check_out);

-- Those of pages that an earlier release has stored.
INSERT INTO numbers (order_id, check_out)
SELECT DISTINCT ON (order_id)
    order_id,
    CASE
        WHEN pg_input_is_valid(fact.value #>> '{booking,check_out}', 'date')
            AND fact.value #>> '{booking,check_out}' ~ '^\d{4}-'
        THEN (fact.value #>> '{booking,check_out}')::date
        ELSE current_date
    END
FROM mypages, jsonb_each(mypages.facts) AS fact
WHERE fact.value #>> '{booking,phone_no}' <> ''
ON CONFLICT DO NOTHING;
