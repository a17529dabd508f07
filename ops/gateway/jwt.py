"""Fills in envoy/jwt.yaml: how tokens are checked, and where other issuers' keys are fetched."""

import json
from collections.abc import Iterable
from string import Template
from urllib.parse import urlsplit

from ops import tokens
from ops.gateway.pages import PAGES
from ops.gateway.rpcs import FOLDER, path_regex, public_rpcs
from ops.gateway.tls import tls_socket

# What is demanded of a token of any issuer.
PROVIDER: dict[str, object] = {
    "audiences": [tokens.AUDIENCE],
    "from_headers": [{"name": "Authorization", "value_prefix": "Bearer "}],
    "require_expiration": True,
    # Signatures are checked once, times at each call. Each filter chain of the gateway remembers this many tokens for
    # each issuer. One of 4 kB, the largest kept, takes 28 kB: 90 MB at most for an issuer.
    "jwt_cache_config": {"jwt_cache_size": 100},
    "max_lifetime": "86400s",
    "claim_to_headers": [
        {"header_name": "x-gotohotel-subject", "claim_name": "sub"},
        {"header_name": "x-gotohotel-role", "claim_name": "role"},
        {"header_name": "x-gotohotel-expiry", "claim_name": "exp"},  # for body.lua
    ],
}


def render_jwt(key_set: str, services: Iterable[str], *, issuers: Iterable[tokens.Issuer] = ()) -> str:
    """How tokens are checked: those of the stack's own key set, and those of other issuers."""
    own = {"issuer": tokens.ISSUER, "local_jwks": {"inline_string": key_set}, **PROVIDER}
    others = {
        f"issuer_{number}": {
            "issuer": issuer.name,
            "remote_jwks": {
                "http_uri": {"uri": issuer.keys_url, "cluster": issuer.keys_url, "timeout": "5s"},
                "cache_duration": "300s",
                # Each of the gateway's filter chains fetches them.
                "async_fetch": {"fast_listener": True, "failed_refetch_duration": "5s"},
                "retry_policy": {"num_retries": 3},
            },
            **PROVIDER,
        }
        for number, issuer in enumerate(issuers)
    }
    providers = {"gotohotel": own, **others}
    any_of = [{"provider_name": name} for name in providers]
    anybody = [path for rpc in public_rpcs(services) if rpc.needs_no_token for path in rpc.paths] + list(PAGES)
    return Template((FOLDER / "jwt.yaml").read_text()).substitute(
        PROVIDERS=json.dumps(providers),
        REQUIREMENT=json.dumps(any_of[0] if len(any_of) == 1 else {"requires_any": {"requirements": any_of}}),
        ANYBODY_RULES="\n".join(map(_rule, anybody)),
    )


def issuer_cluster(issuer: tokens.Issuer) -> str:
    """Where an issuer's keys are fetched."""
    url = urlsplit(issuer.keys_url)
    host = url.hostname or ""
    names = [{"san_type": "DNS", "matcher": {"exact": host}}]
    trusted = {"trusted_ca": {"filename": str(issuer.authority)}, "match_typed_subject_alt_names": names}
    address = {"socket_address": {"address": host, "port_value": url.port or 443}}
    cluster = {
        "name": issuer.keys_url,
        "type": "LOGICAL_DNS",  # tries a name's addresses in turn, 0.3 s apart: one may not answer
        "connect_timeout": "2s",
        "dns_lookup_family": "ALL",
        "transport_socket": tls_socket("Upstream", {"validation_context": trusted}, sni=host),
        "load_assignment": {
            "cluster_name": issuer.keys_url,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}],
        },
    }
    return f"    - {json.dumps(cluster)}\n"


def _rule(path: str) -> str:
    """The JWT rule of a path that needs no token."""
    return f"        - {json.dumps({'match': {'safe_regex': {'regex': path_regex(path)}}})}"
