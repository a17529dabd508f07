"""The groups of source addresses: each has a filter chain of its own, and so a number of connections of its own."""

import json

GROUPS = 32  # each costs Envoy 1.7 MB, and some more for checked tokens (jwt.py)
TYPES = "type.googleapis.com/envoy.extensions.matching"


def source_matchers() -> str:
    """Which filter chain a connection gets, by its source address: the first one whose number the hash reaches."""
    return "\n".join(f"            - {json.dumps(_reaches(group))}" for group in reversed(range(GROUPS)))


def further_chains() -> str:
    """The filter chains of all groups but the first, which look like that one."""
    alike = "transport_socket: *transport, filters: [*connections, *http]"
    return "\n".join(f"        - {{name: {_chain(group)}, {alike}}}" for group in range(1, GROUPS))


def _reaches(group: int) -> dict[str, object]:
    source = {"@type": f"{TYPES}.common_inputs.network.v3.SourceIPInput"}
    hashed = {
        "@type": f"{TYPES}.input_matchers.consistent_hashing.v3.ConsistentHashing",
        "threshold": group,
        "modulo": GROUPS,
    }
    chain = {"@type": "type.googleapis.com/google.protobuf.StringValue", "value": _chain(group)}
    predicate = {
        "input": {"name": "source", "typed_config": source},
        "custom_match": {"name": "hash", "typed_config": hashed},
    }
    return {
        "predicate": {"single_predicate": predicate},
        "on_match": {"action": {"name": "chain", "typed_config": chain}},
    }


def _chain(group: int) -> str:
    return f"sources_{group}"
