"""The commands.

stack   up, down, migrate, status, logs, start, stop, token, backup, restore, demo, audit
events  stream, dead-letters, republish, rebuild
"""
