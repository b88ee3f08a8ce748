"""Typed configuration: one TOML file per role, overridable by environment, every key documented by its model."""

import dataclasses
import tomllib
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from common.errors import ConfigError, OperatorError
from common.ids import check_name
from common.mqtt import Broker
from common.settings_table import list_keys


class Section(BaseModel):
    """A table of the TOML file; an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class BrokerSection(Section):
    """[broker]"""

    host: str = Field("127.0.0.1", description="Host name or address of the MQTT broker.")
    port: int = Field(1883, ge=1, le=65535, description="TCP port of the broker.")
    username: str | None = Field(None, description="User name, when the broker asks for one.")
    password: str | None = Field(None, repr=False, description="Password; better set by environment.")
    ca_file: Path | None = Field(None, description="CA certificate (PEM); its presence switches TLS on.")
    cert_file: Path | None = Field(None, description="Client certificate (PEM); its common name is the gateway id.")
    key_file: Path | None = Field(None, description="Private key of the client certificate (PEM).")

    def to_broker(self) -> Broker:
        """The value object that `common.mqtt` takes."""
        return Broker(**self.model_dump(include={field.name for field in dataclasses.fields(Broker)}))


class RoleSettings(BaseSettings):
    """Base of a role's settings: environment over file over defaults."""

    model_config = SettingsConfigDict(extra="forbid", frozen=True, env_nested_delimiter="__")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        del settings_cls, dotenv_settings, file_secret_settings
        return env_settings, init_settings


S = TypeVar("S", bound=RoleSettings)


def load_settings(model: type[S], path: Path) -> S:
    """Read a role's TOML file.

    Relative paths in the file are taken from the file's own folder by the models that hold them.

    Raises:
        ConfigError: no such file, no TOML, an unknown key or a wrong value; every wrong key is named.
    """
    try:
        with path.open("rb") as file:
            values: dict[str, Any] = tomllib.load(file)
    except FileNotFoundError as error:
        raise ConfigError(f"there is no configuration file {path}", "Copy one from deploy/examples.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}", "Mend the line it names.") from error
    try:
        return model(**values)
    except ValidationError as error:
        raise ConfigError(
            f"{path}: {_sentences(error, model)}", "`headframe … config keys` lists every key."
        ) from error


def check_key_name(kind: str, value: str) -> str:
    """`check_name` for validators of settings, so that the error names the key.

    Raises:
        ValueError: not a name.
    """
    try:
        return check_name(kind, value)
    except OperatorError as error:
        raise ValueError(str(error)) from error


def _sentences(error: ValidationError, model: type[BaseModel]) -> str:
    """One clause per wrong key, the key written as in TOML."""
    known = sorted({row["key"].rpartition(".")[2] for row in list_keys(model)} | set(model.model_fields))
    clauses = []
    for item in error.errors():
        key = ".".join(str(part) for part in item["loc"])
        reason = item["msg"]
        if item["type"] == "extra_forbidden":
            near = get_close_matches(str(item["loc"][-1]), known, 1)
            reason = f"unknown key, did you mean {near[0]}?" if near else "unknown key"
        clauses.append(f"{key}: {reason}")
    return "; ".join(clauses)
