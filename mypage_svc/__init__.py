"""The customer center: shows a guest how a booking is going. A read model, built from events alone.

server  RPCs in    policies  events in    domain  how facts become a page (pure)    store  SQL
"""
