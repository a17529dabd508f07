"""Fills in envoy/envoy.yaml, envoy/routes.yaml and envoy/jwt.yaml.

sources   the groups of source addresses
rpcs      the public RPCs, as the compiled protos declare them
refusals  Envoy's own errors, in the shape of the contract
tls       TLS settings of listeners and clusters
jwt       how tokens are checked
pages     the OpenAPI description and the documentation page
metrics   the statistics, for Prometheus
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from string import Template

from ops import tokens
from ops.gateway.jwt import issuer_cluster, render_jwt
from ops.gateway.metrics import metrics_cluster, metrics_listener
from ops.gateway.pages import PAGES, page_route
from ops.gateway.refusals import LOCAL_REPLIES, mappers, upgrade_mapper
from ops.gateway.rpcs import DESCRIPTORS, FOLDER, PublicRpc, contract_tables, path_regex, public_rpcs
from ops.gateway.sources import further_chains, source_matchers
from ops.gateway.tls import mutual_tls, transport
from ops.services import SERVICES, part

__all__ = ["render_jwt", "write"]

# Connections, and calls per second; in a cluster each replica of the gateway counts for itself.
LIMITS = {
    "MAX_GROUP_CONNECTIONS": 2500,  # of 10,000, for each group of source addresses
    "RATE_LIMIT": 5000,
    "SOURCE_RATE_LIMIT": 2000,
    "MAX_SOURCES": 10_000,
    "SUBJECT_RATE_LIMIT": 50,
    "SUBJECT_BURST": 100,
    "MAX_SUBJECTS": 10_000,
    "LOGGED_REFUSALS_PERCENT": 1,
}
# How many calls may be at a service at once (fewer while many are refused: envoy/places.lua), and how many streams.
MAX_CALLS, MAX_ANONYMOUS_CALLS, MAX_STREAMS = 320, 64, 2000
NOT_TRIED_BEFORE = {
    "name": "envoy.retry_host_predicates.previous_hosts",
    "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate"
    },
}
ANONYMOUS, STREAMS = "_anonymous", "_streams"  # suffixes of the clusters for calls without a token and for streams

CLUSTER = """\
    - name: {name}
      type: STRICT_DNS
      connect_timeout: 0.25s
      dns_lookup_family: V4_PREFERRED
      typed_extension_protocol_options:
        envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
          "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
          explicit_http_config:
            http2_protocol_options:
              connection_keepalive: {{interval: 10s, timeout: 3s}}
      transport_socket:
        name: envoy.transport_sockets.tls
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext
          common_tls_context: {tls}
      circuit_breakers:
        thresholds:
          - max_connections: 64
            max_pending_requests: {max_requests}
            max_requests: {max_requests}
            max_retries: {max_requests}  # all that were at a replica when it died
      load_assignment:
        cluster_name: {name}
        endpoints:
          - lb_endpoints:
              - endpoint: {{address: {{socket_address: {{address: {host}, port_value: {port}}}}}}}
"""


PLACES = """\
      - extension:
          name: {name}
          typed_config:
            "@type": type.googleapis.com/envoy.extensions.router.cluster_specifiers.lua.v3.LuaConfig
            source_code: {{inline_string: {script}}}
            default_cluster: {name}  # should the script fail: the breaker still counts
"""


def write(
    folder: Path,
    values: Mapping[str, object],
    services: Mapping[str, tuple[str, int]],
    *,
    public_tls: Path | None = None,
    issuers: Iterable[tokens.Issuer] = (),
    origins: Iterable[str] = (),
    metrics_port: int | None = None,
) -> None:
    """Writes envoy.yaml and routes.yaml for these values and services. Raises KeyError for a missing value.

    With the folder of a certificate the public listener speaks TLS. `issuers` are asked for their keys. Web pages of
    these `origins` may call; "*" stands for all. On the metrics port, if there is one, Prometheus reads the statistics.
    """
    rpcs = list(public_rpcs(services))
    clusters = "".join(
        CLUSTER.format(
            name=name + suffix,
            host=host,
            port=port,
            max_requests=max_requests,
            tls=mutual_tls(values["GATEWAY_TLS"], peers=[part(name)]),
        )
        for name, (host, port) in services.items()
        for suffix, max_requests in (("", MAX_CALLS), (ANONYMOUS, MAX_ANONYMOUS_CALLS), (STREAMS, MAX_STREAMS))
        if not suffix or any(_cluster(rpc) == name + suffix for rpc in rpcs)
    )
    clusters += "".join(map(issuer_cluster, issuers))
    pay_host, pay_port = services["pay_svc"]
    callers = [part(name) for name, service in SERVICES.items() if service.calls_pay]
    replies = "\n".join([upgrade_mapper(), *(mappers(http, *reply) for http, reply in LOCAL_REPLIES.items())])
    filled_in = {
        **LIMITS,
        **values,
        "ROUTES_FILE": folder / "routes.yaml",
        "PUBLIC_TRANSPORT": transport(public_tls),
        "SOURCE_MATCHERS": source_matchers(),
        "FURTHER_CHAINS": further_chains(),
        "DESCRIPTORS": DESCRIPTORS,
        "EDGE_LUA": _script("refusal.lua", "edge.lua"),
        "BODY_LUA": _script("refusal.lua", "body.lua", tables=contract_tables(rpcs, [*PAGES, "/healthz"])),
        "HEALTHZ_LUA": FOLDER / "healthz.lua",
        "PUBLIC_CLUSTERS": clusters,
        "METRICS_LISTENER": metrics_listener(values["PUBLIC_HOST"], metrics_port) if metrics_port else "",
        "METRICS_CLUSTER": metrics_cluster(values["ADMIN_SOCKET"]) if metrics_port else "",
        "PLACES": "".join(PLACES.format(name=name, script=_places(name)) for name in services),
        "ROUTES": "\n".join(route for rpc in rpcs for route in _routes(rpc)),
        "HEALTH_RETRIES": json.dumps(_retries(only_reads=True)),
        "PAGES": "\n".join(page_route(path, *page) for path, page in PAGES.items()),
        "CORS_ORIGINS": json.dumps([_origin(origin) for origin in origins]),
        "TRANSCODED_SERVICES": json.dumps(sorted({rpc.service for rpc in rpcs})),
        "LOCAL_REPLY_MAPPERS": replies,
        "PAY_HOST": pay_host,
        "PAY_PORT": pay_port,
        "EGRESS_SERVER_TLS": mutual_tls(values["EGRESS_TLS"], peers=callers),
        "EGRESS_CLIENT_TLS": mutual_tls(values["EGRESS_TLS"], peers=["pay"]),
    }
    for name in ("envoy.yaml", "routes.yaml"):
        (folder / name).write_text(Template((FOLDER / name).read_text()).substitute(filled_in))


def _origin(origin: str) -> dict[str, object]:
    """A matcher of an origin."""
    return {"safe_regex": {"regex": ".*"}} if origin == "*" else {"exact": origin}


def _retries(*, only_reads: bool, is_stream: bool = False) -> dict[str, object]:
    """Tries a call again, at another replica if there is one: a call that none has received, and one that only reads if
    its connection broke.
    """
    # A browser gives up for good when a stream is refused: a restart of the service is waited for.
    times, shortest_pause, longest_pause = (15, "0.25s", "2s") if is_stream else (2, "0.025s", "0.25s")
    return {
        "retry_on": "connect-failure,refused-stream" + (",reset" if only_reads else ""),
        "num_retries": times,
        "retry_back_off": {"base_interval": shortest_pause, "max_interval": longest_pause},
        "retry_host_predicate": [NOT_TRIED_BEFORE],
        "host_selection_retry_max_attempts": 5,
    }


def _cluster(rpc: PublicRpc) -> str:
    """Calls without a token have few places of their own: they never use up those of the others. Streams last long."""
    return rpc.cluster + (ANONYMOUS if rpc.needs_no_token else STREAMS if rpc.is_stream else "")


def _routes(rpc: PublicRpc) -> Iterator[str]:
    """One for its gRPC path, and one for each of its JSON paths."""
    cluster = _cluster(rpc)
    looks_for_place = cluster == rpc.cluster
    chosen = {"cluster_specifier_plugin": cluster} if looks_for_place else {"cluster": cluster}
    retries = _retries(only_reads=not rpc.has_side_effects, is_stream=rpc.is_stream)
    route: dict[str, object] = {"name": rpc.name}
    if rpc.is_stream:
        route["route"] = {**chosen, "timeout": "0s", "idle_timeout": "0s", "retry_policy": retries}
    else:
        # A call without a deadline gets one, and nobody gets a longer one.
        limit = {"grpc_timeout_header_max": "10s"}
        route["route"] = {**chosen, "timeout": "12s", "max_stream_duration": limit, "retry_policy": retries}
        deadline = {"header": {"key": "grpc-timeout", "value": "10S"}, "append_action": "ADD_IF_ABSENT"}
        route["request_headers_to_add"] = [deadline]
    as_grpc: tuple[dict[str, object], str] = {"path": rpc.paths[0]}, "POST"
    as_json: list[tuple[dict[str, object], str]] = [
        ({"safe_regex": {"regex": path_regex(each.path)}}, each.verb.upper()) for each in rpc.bindings
    ]
    for path, verb in (as_grpc, *as_json):
        headers: list[dict[str, object]] = [
            {"name": ":method", "string_match": {"exact": verb}},
            {"name": "x-gotohotel-native-grpc", "present_match": (path, verb) == as_grpc},
        ]
        if looks_for_place:  # not before the token is checked
            headers.append({"name": "x-gotohotel-subject", "present_match": True})
        yield f"          - {json.dumps({**route, 'match': {**path, 'headers': headers}})}"


def _places(service: str) -> str:
    return _script("places.lua", tables=f'local SERVICE, PLACES = "{service}", {MAX_CALLS}\n')


def _script(*files: str, tables: str = "") -> str:
    """Lua files and generated tables as one script, quoted for YAML."""
    return json.dumps(tables + "\n".join((FOLDER / file).read_text() for file in files))
