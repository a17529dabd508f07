"""The sample catalogue of a new hotel."""

import httpx

from ops.addresses import Addresses
from ops.supervision import wait_until

# Room type → price of a night in KRW, rooms, guests.
CATALOGUE = {
    "Normal": (80_000, 40, 2),
    "delux": (120_000, 30, 3),
    "DeluxNormal": (150_000, 20, 3),
    "Prime": (240_000, 10, 4),
    "childRoom": (100_000, 10, 4),
}
PATIENCE_SECONDS = 60


def open_catalogue(addresses: Addresses) -> None:
    """Creates the catalogue through the desk's RPCs if the hotel has no room types of its own, or completes it after an
    interruption; waits until it is on sale.
    """
    headers = {"Authorization": f"Bearer {addresses.token(subject='catalogue', role='desk')}"}
    with httpx.Client(
        base_url=addresses.gateway_url, headers=headers, timeout=10, verify=addresses.checks_gateway
    ) as client:
        there = _ids(client, "/roomTypes", "id")
        if there <= CATALOGUE.keys():  # a hotel with room types of its own is left alone
            for name, (rate, capacity, guests) in CATALOGUE.items():
                if name in there:
                    continue
                money = {"currencyCode": "KRW", "units": rate}
                body = {"displayName": name, "capacity": capacity, "maxGuests": guests, "nightlyRate": money}
                client.put(f"/roomTypes/{name}", json=body).raise_for_status()
        wait_until(
            lambda: _ids(client, "/roomTypes", "id") <= _ids(client, "/rooms", "roomType"),
            "the catalogue does not reach order_svc",
            seconds=PATIENCE_SECONDS,
        )


def _ids(client: httpx.Client, path: str, key: str) -> set[str]:
    """The ids in a list of the gateway."""
    lists: dict[str, list[dict[str, str]]] = client.get(path).raise_for_status().json()
    return {entry[key] for entries in lists.values() for entry in entries}
