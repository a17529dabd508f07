"""The four services as one machine in memory: the real rules, use cases and policies, between stores that are fakes.

hotel  the fakes and what can be done to them    test_model  the machine    test_fakes  the fakes do not lie
test_guards  with any one guard removed, a test fails
"""
