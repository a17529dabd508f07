"""Limits the connections from one address.

Envoy has no such limit, but one for each filter chain. So addresses are in groups, by a hash, each with a chain of its
own: a client that opens as many connections as it can takes those of its group, and the other groups do not notice.
"""

import json

GROUPS = 64
TYPES = "type.googleapis.com/envoy.extensions"


def source_matchers() -> str:
    """Which filter chain a connection gets, by its source address: the first one whose group the hash reaches."""
    return _lines("            ", [_reaches(group) for group in reversed(range(GROUPS))])


def source_chains(max_connections: int) -> str:
    """A filter chain for each group, which passes its connections on to the cluster `public`, this gateway itself."""
    limit = {
        "@type": f"{TYPES}.filters.network.connection_limit.v3.ConnectionLimit",
        "stat_prefix": "source",
        "max_connections": max_connections,
    }
    proxy = {
        "@type": f"{TYPES}.filters.network.tcp_proxy.v3.TcpProxy",
        "stat_prefix": "front",
        "cluster": "public",
        "idle_timeout": "0s",  # the public listener ends idle connections
    }
    filters = [
        {"name": "envoy.filters.network.connection_limit", "typed_config": limit},
        {"name": "envoy.filters.network.tcp_proxy", "typed_config": proxy},
    ]
    return _lines("        ", [{"name": _name(group), "filters": filters} for group in range(GROUPS)])


def _reaches(group: int) -> dict[str, object]:
    source = {"@type": f"{TYPES}.matching.common_inputs.network.v3.SourceIPInput"}
    share = {
        "@type": f"{TYPES}.matching.input_matchers.consistent_hashing.v3.ConsistentHashing",
        "threshold": group,
        "modulo": GROUPS,
    }
    chain = {"@type": "type.googleapis.com/google.protobuf.StringValue", "value": _name(group)}
    hashed = {
        "input": {"name": "source", "typed_config": source},
        "custom_match": {"name": "hash", "typed_config": share},
    }
    return {
        "predicate": {"single_predicate": hashed},
        "on_match": {"action": {"name": "chain", "typed_config": chain}},
    }


def _name(group: int) -> str:
    return f"sources_{group}"


def _lines(indent: str, entries: list[dict[str, object]]) -> str:
    return "\n".join(f"{indent}- {json.dumps(entry)}" for entry in entries)
