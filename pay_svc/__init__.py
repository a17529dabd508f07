"""Owns payments: one per order, charged at most once. It listens to no event; it is told, synchronously.

server  RPCs in    service  use cases    domain     rules and the processor port (pure)
store   SQL        wire     event → protobuf        processor  the card processor port's adapters
"""
