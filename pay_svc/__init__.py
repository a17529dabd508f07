"""Owns payments: one per order, charged at most once.

It subscribes to no events; order_svc and reservation_svc call it.

server     RPCs in
service    use cases
domain     rules and the processor port (pure)
store      SQL
wire       event → protobuf
processor  the card processor port's adapters
"""
