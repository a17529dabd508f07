"""A port of the gateway for who looks after it: its statistics for Prometheus, one path of the admin interface and no
other; and whether it answers, for probes, which no limit of guests' calls may refuse.
"""

import json

PATH = "/stats/prometheus"
READY = "/ready"
CLUSTER = "admin"


def metrics_listener(host: object, port: int) -> str:
    """The listener, which answers these two and nothing else."""
    kind = "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
    router = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"
    only_get = [{"name": ":method", "string_match": {"exact": "GET"}}]
    route = {
        "match": {"path": PATH, "headers": only_get},
        "route": {"cluster": CLUSTER, "prefix_rewrite": f"{PATH}?usedonly"},
    }
    ready = {"match": {"path": READY}, "direct_response": {"status": 200}}
    manager = {
        "@type": kind,
        "stat_prefix": "metrics",
        "request_timeout": "10s",
        "request_headers_timeout": "5s",
        "common_http_protocol_options": {"idle_timeout": "10s"},
        "http_filters": [{"name": "envoy.filters.http.router", "typed_config": {"@type": router}}],
        "route_config": {"virtual_hosts": [{"name": "metrics", "domains": ["*"], "routes": [route, ready]}]},
    }
    listener = {
        "name": "metrics",
        # Also while the gateway is full: then they are wanted most.
        "ignore_global_conn_limit": True,
        "bypass_overload_manager": True,
        "address": {"socket_address": {"address": host, "port_value": port}},
        "filter_chains": [
            {"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}
        ],
    }
    return f"    - {json.dumps(listener)}"


def metrics_cluster(socket: object) -> str:
    """The admin interface, as a cluster."""
    endpoint = {"endpoint": {"address": {"pipe": {"path": str(socket)}}}}
    cluster = {
        "name": CLUSTER,
        "type": "STATIC",
        "connect_timeout": "1s",
        "circuit_breakers": {"thresholds": [{"max_connections": 4, "max_pending_requests": 4, "max_requests": 4}]},
        "load_assignment": {"cluster_name": CLUSTER, "endpoints": [{"lb_endpoints": [endpoint]}]},
    }
    return f"    - {json.dumps(cluster)}"
