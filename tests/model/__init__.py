"""The four services as one state machine in memory: the real rules, use cases and policies on fake stores.

fakes  stores and processor in memory    hotel  the system, and what can happen to it    test_model  the state machine
test_fakes  one contract for fake and real stores    test_guards  if any one guard is removed, a test fails
"""
