"""The scenarios; importing this package registers them.

releases   rollouts
money      charged once
events     lost, repeated, poisonous
races      many at once
parts      parts that fail
callers    callers who give up or attack
processes  each process and each connection
messages   told once
watches    watched
"""

from chaos.scenarios import callers, events, messages, money, parts, processes, races, releases, watches

__all__ = ["callers", "events", "messages", "money", "parts", "processes", "races", "releases", "watches"]
