"""A service's settings: read from the environment once; invalid ones are refused by name."""

import logging
import os
from typing import Annotated, Literal, TypeVar

import phonenumbers
from pydantic import AfterValidator, DirectoryPath, Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

logger = logging.getLogger(__name__)


def _supported_region(region: str) -> str:
    """The region, if the rules for its phone numbers are known. Raises ValueError."""
    if region not in phonenumbers.SUPPORTED_REGIONS:
        raise ValueError("is not an ISO 3166 code of a country with known phone numbers")
    return region


Port = Annotated[int, Field(ge=1, le=65535)]
Seconds = Annotated[float, Field(ge=0, le=86_400, allow_inf_nan=False)]
PoolSize = Annotated[int, Field(ge=2, le=1000)]
Text = Annotated[str, Field(min_length=1)]
PostgresUrl = Annotated[str, Field(pattern=r"^postgres(ql)?://.")]
NatsUrl = Annotated[str, Field(pattern=r"^(nats|tls)://.")]
Address = Annotated[
    str, Field(pattern=r"^(dns://[^/\s]+/)?[^:/\s]+:\d{1,5}$")
]  # host:port, or dns://name-server:port/host:port
# Ed25519: in hexadecimal, or a certificate in PEM
PublicKey = Annotated[str, Field(pattern=r"^([0-9a-f]{64}|-----BEGIN CERTIFICATE-----\s[\s\S]+)$")]
PhoneRegion = Annotated[str, AfterValidator(_supported_region)]  # ISO 3166, of numbers without a country code
Timeout = Annotated[float, Field(gt=0, le=600, allow_inf_nan=False)]


class SettingRefused(Exception):
    """A setting is missing or invalid. The message names it and says why, without its value: it may be a secret."""


class Settings(BaseSettings):
    """The settings of every service: PREFIX_… environment variables, such as ORDER_PORT or PAY_PORT."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore", env_prefix="GOTOHOTEL_SERVICE_")

    port: Port
    database_url: PostgresUrl
    nats_url: NatsUrl
    tls_folder: DirectoryPath  # this service's certificate and the authority that it trusts: see gotohotel/rpc/tls.py
    host: Text = "127.0.0.1"
    health_port: Port | None = None  # health alone, without TLS: Kubernetes' probes have no certificate
    start_seconds: Seconds = 0.0  # how long a start waits for the database and for its schema
    pool_size: PoolSize = 10
    drain_seconds: Seconds = 20.0  # how long running calls may take after SIGTERM
    notice_seconds: Seconds = 1.0  # how long calls are accepted after SIGTERM, so that callers see NOT_SERVING
    # Phone numbers are erased this long after the stay.
    keep_numbers_days: Annotated[int, Field(ge=0, le=3650)] = 30
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"


S = TypeVar("S", bound="Settings")
B = TypeVar("B", bound=BaseSettings)


def read_settings(settings_type: type[B], prefix: str, *, others: tuple[str, ...] = ()) -> B:
    """Reads PREFIX_FIELD for every field. Raises SettingRefused naming the variable.

    Warns about variables with the prefix that are no field and begin with none of `others`: a misspelt one has no
    effect. They are not refused, because a newer release may know them.
    """
    known = {f"{prefix}_{field}".upper() for field in settings_type.model_fields}
    for variable in sorted(os.environ):
        if variable.startswith(f"{prefix}_") and variable not in known and not variable.startswith(others):
            logger.warning("the setting %s is not known, and has no effect", variable)
    try:
        return settings_type(_env_prefix=f"{prefix}_")
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        variable = f"{prefix}_{first['loc'][0]}".upper()
        if first["type"] == "missing":
            raise SettingRefused(f"The setting {variable} is missing.") from None
        raise SettingRefused(f"The setting {variable} is not valid: {first['msg']}.") from None
