"""Hostile input through the real gateway: `make fuzz` runs 20,000 cases, `make test` a few hundred."""
