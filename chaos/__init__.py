"""Breaks a whole stack on purpose, under load, and judges what is left: `make chaos`.

scenarios  what is broken, and what must hold     nemesis  kills, freezes, cuts, fills; counts what it really did
scenario   the list of them
load       guests and a desk that remember        links    TCP connections that can be cut
verdict    the audit and the clients' histories   rig      a stack, its load and its nemesis together
"""
