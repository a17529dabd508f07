"""Guests' reviews of their stays."""
