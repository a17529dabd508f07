"""The scenarios; importing this registers them all.

money  charged once    events  lost, repeated, poisonous    races  many at once    parts  that fail    processes  each
"""

from chaos.scenarios import events, money, parts, processes, races

__all__ = ["events", "money", "parts", "processes", "races"]
