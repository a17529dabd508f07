"""The scenarios; importing this registers them all.

releases  rollouts
money  charged once    events  lost, repeated, poisonous    races  many at once    parts  that fail
callers  who give up or mean harm    processes  each
"""

from chaos.scenarios import callers, events, money, parts, processes, races, releases

__all__ = ["callers", "events", "money", "parts", "processes", "races", "releases"]
