-- In a transaction of its own: the table is in use meanwhile. (Until it is done, SAVE goes by the status of ended orders.)
UPDATE orders
SET holds_nights = false
WHERE status IN ('CANCELING', 'CANCELED', 'REJECTED', 'EXPIRED')
  AND holds_nights;
