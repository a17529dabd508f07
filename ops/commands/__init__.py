"""The commands.

stack   up, down, migrate, status, logs, start, stop, token, demo, audit
events  stream, dead-letters, republish, rebuild
"""
