"""The customer center: shows a guest the state of a booking. A read model, built from events alone.

server    RPCs in
policies  events in
domain    how facts become a page (pure)
watches   who is told when a page has changed
store     SQL
"""
