"""The commands.

stack   up, down, migrate, status, logs, start, stop, token, backup, restore, demo, audit
events  stream, dead-letters, republish, rebuild
cluster  smoke, catalogue, and what pods run to configure themselves
"""
