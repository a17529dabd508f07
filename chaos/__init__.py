"""Injects faults into a whole stack under load, and checks the result: `make chaos`.

scenarios  the faults, and what must hold
nemesis    kills, freezes, cuts, fills; counts the faults that it has observed
scenario   the list of scenarios
load       guests and a desk that remember their answers
watcher    one who watches a page, as a browser does
links      TCP connections that can be cut
verdict    the audit and the clients' histories
rig        a stack, its load and its nemesis together
"""
