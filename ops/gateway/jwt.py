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
    "max_lifetime": "86400s",
    "claim_to_headers": [
        {"header_name": "x-gotohotel-subject", "claim_name": "sub"},
        {"header_name": "x-gotohotel-role", "claim_name": "role"},
        {"header_name": "x-gotohotel-expiry", "claim_name": "exp"},  # for body.lua
    ],
}

# Signatures are checked once, times at each call: each filter chain of the gateway remembers so many tokens, of so many
# bytes at most. A remembered token takes 6 (of 0.5 kB) to 28 kB (of 4): at most 200 MB for all chains, and 90 MB for
# each other issuer, whose tokens are longer.
OWN_CACHE = {"jwt_cache_size": 1000, "jwt_max_token_size": 512}
CACHE_OF_OTHERS = {"jwt_cache_size": 100, "jwt_max_token_size": 4096}


def render_jwt(key_set: str, services: Iterable[str], *, issuers: Iterable[tokens.Issuer] = ()) -> str:
    """How tokens are checked: those of the stack's own key set, and those of other issuers."""
    key_source = {"inline_string": key_set}
    own = {"issuer": tokens.ISSUER, "local_jwks": key_source, "jwt_cache_config": OWN_CACHE, **PROVIDER}
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
            "jwt_cache_config": CACHE_OF_OTHERS,
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
