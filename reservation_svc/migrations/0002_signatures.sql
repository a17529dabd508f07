-- One row. Orders that were placed before that time have no signature of order_svc.
CREATE TABLE unsigned_before (at timestamptz PRIMARY KEY);
INSERT INTO unsigned_before (at) VALUES (now());
