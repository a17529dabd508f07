"""The scenarios; importing this registers them all.

releases  rollouts
money  charged once    events  lost, repeated, poisonous    races  many at once    parts  that fail    processes  each
"""

from chaos.scenarios import events, money, parts, processes, races, releases

__all__ = ["events", "money", "parts", "processes", "races", "releases"]
