-- From when on no attempt begins: order_svc wants the order to expire. An open attempt's truth still decides.
ALTER TABLE payments ADD COLUMN close_asked_at timestamptz;
