"""The four services as one machine in memory: the real rules, use cases and policies, between stores that are fakes.

fakes  stores and processor in memory     hotel       the system, and what can happen to it
test_model  the machine    test_fakes  the fakes do not lie    test_guards  with any one guard removed, a test fails
"""
