"""Writes what follows from other files: the chart's table of services, the table of values in its README, and how each
preset is rendered, which is read when the chart changes.
"""

from dataclasses import asdict

import yaml

from helm.rendering import CHART, GOLDEN, PRESETS, golden, render, values_of
from ops.cluster import METRICS_PORT, SIGNS_TOKENS
from ops.services import ORDER_SIGNING, SERVICES, part, secrets_needed
from ops.settings import PORTS

HEALTH_PORT = 8090


# Private keys, each with a certificate for its public half: name → kind.
KEYS = {ORDER_SIGNING: "ed25519", SIGNS_TOKENS: "ecdsa"}


def secret_keys() -> list[str]:
    """The names of all passwords and keys."""
    passwords = [name for name in secrets_needed() if name not in KEYS]
    return [*passwords, *(name + suffix for name in KEYS for suffix in ("", ".crt"))]


def services() -> str:
    """The table of services, as templates read it."""
    table = {
        "services": {
            name: {"part": part(name), **{key: value for key, value in asdict(service).items() if value}}
            for name, service in SERVICES.items()
        },
        "health_port": HEALTH_PORT,
        "gateway_port": PORTS["gateway"],
        "egress_port": PORTS["egress"],
        "metrics_port": METRICS_PORT,
        "certificates": [*map(part, SERVICES), "gateway", "egress"],
        "passwords": [name for name in secrets_needed() if name not in KEYS],
        "keys": KEYS,
    }
    text = yaml.safe_dump(table, sort_keys=False, default_flow_style=None, width=120)
    return f"# Written by `make chart` from ops/services.py.\n{text}"


def values_table() -> str:
    """Every value with its default and its comment in values.yaml."""
    rows = ["| value | default | what it is |", "|---|---|---|"]
    path: list[str] = []
    said = ""
    for line in (CHART / "values.yaml").read_text().splitlines():
        text = line.strip()
        if text.startswith("# -- "):
            said = text.removeprefix("# -- ")
        elif text and not text.startswith("#"):
            key, _, default = text.partition(":")
            depth = (len(line) - len(line.lstrip())) // 2
            path = [*path[:depth], key]
            if said:
                rows.append(f"| `{'.'.join(path)}` | `{default.strip()}` | {said} |")
            said = ""
    return "\n".join(rows) + "\n"


def secrets_list() -> str:
    """The keys of the Secret with passwords and keys."""
    return ", ".join(f"`{key}`" for key in secret_keys()) + "\n"


def readme(text: str) -> str:
    """The README with the tables of now."""
    for name, table in (("secrets", secrets_list()), ("values", values_table())):
        begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->\n"
        before, rest = text.split(begin)
        text = f"{before}{begin}{table}{end}{rest.split(end)[1]}"
    return text


def write() -> None:
    """Writes all of them."""
    (CHART / "files" / "services.yaml").write_text(services())
    file = CHART / "README.md"
    file.write_text(readme(file.read_text()))
    GOLDEN.mkdir(exist_ok=True)
    for preset in PRESETS:
        (GOLDEN / f"{preset}.yaml").write_text(golden(render(values_of(preset))))


if __name__ == "__main__":
    write()
