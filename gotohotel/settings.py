"""A service's settings: read from the environment once; invalid ones are refused by name."""

from typing import Annotated, Literal, TypeVar

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

Port = Annotated[int, Field(ge=1, le=65535)]
Seconds = Annotated[float, Field(ge=0, le=86_400, allow_inf_nan=False)]
PoolSize = Annotated[int, Field(ge=2, le=1000)]
Timeout = Annotated[float, Field(gt=0, le=600, allow_inf_nan=False)]


class SettingRefused(Exception):
    """A setting is missing or invalid. The message names it and says why, without its value: it may be a secret."""


class Settings(BaseSettings):
    """The settings of every service: PREFIX_… environment variables, such as ORDER_PORT or PAY_PORT."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore", env_prefix="GOTOHOTEL_SERVICE_")

    port: Port
    database_url: str
    nats_url: str
    host: str = "127.0.0.1"
    pool_size: PoolSize = 10
    drain_seconds: Seconds = 20.0  # how long running calls may take after SIGTERM
    notice_seconds: Seconds = 1.0  # how long calls are accepted after SIGTERM, so that callers see NOT_SERVING
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"


S = TypeVar("S", bound="Settings")
B = TypeVar("B", bound=BaseSettings)


def read_settings(settings_type: type[B], prefix: str) -> B:
    """Reads PREFIX_FIELD for every field. Raises SettingRefused naming the variable."""
    try:
        return settings_type(_env_prefix=f"{prefix}_")
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        variable = f"{prefix}_{first['loc'][0]}".upper()
        if first["type"] == "missing":
            raise SettingRefused(f"The setting {variable} is missing.") from None
        raise SettingRefused(f"The setting {variable} is not valid: {first['msg']}.") from None
