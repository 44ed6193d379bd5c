"""Every setting in one place: defaults, `sensorium.toml`, `SENSORIUM_*` environment variables, flags - later wins.

Names in the file are the field names below, tables are nested fields. In the environment a nested field joins with
two underscores: `SENSORIUM_WINDOW__SIZE_MS=5000`. `sensorium config show` prints what is in force and from where.
"""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, TomlConfigSettingsSource

from streams.errors import ConfigError


class SettingsError(ConfigError):
    """A setting that cannot be used; the message names it and the command that mends it."""


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class PerModality(Section):
    """One value for each modality."""

    sensor: int = Field(ge=0, description="how far out of order readings may arrive (ms)")
    audio: int = Field(ge=0, description="how far out of order clips may arrive (ms)")
    caption: int = Field(ge=0, description="how far out of order captions may arrive (ms)")


class Waits(Section):
    """One value for each modality."""

    sensor: int = Field(ge=0, description="how long a window waits for readings that do not come (ms)")
    audio: int = Field(ge=0, description="how long a window waits for clips that do not come (ms)")
    caption: int = Field(ge=0, description="how long a window waits for captions that do not come (ms)")


class WindowSettings(Section):
    """Event-time windows (milliseconds)."""

    size_ms: int = Field(10_000, ge=100, description="length of a window")
    hop_ms: int = Field(10_000, ge=100, description="distance between window starts; must divide size_ms")
    disorder_ms: PerModality = Field(
        PerModality(sensor=2_000, audio=2_000, caption=2_000),
        description="how far out of order events of a modality may arrive",
    )
    allowed_lateness_ms: int = Field(30_000, ge=0, description="how long a late event still updates a fired window")
    max_wait_ms: Waits = Field(
        Waits(sensor=2_000, audio=2_000, caption=2_000),
        description="how long a window waits for a modality, by its stream's own clock; at least disorder_ms",
    )
    idle_timeout_ms: int = Field(
        10_000, ge=100, description="a stream closes its windows when quiet for this long, and 3 of its usual intervals"
    )
    max_jump_ms: int = Field(60_000, ge=0, description="an event further ahead of its stream needs a second to confirm")
    max_clock_skew_ms: int = Field(300_000, ge=0, description="how far ahead of our clock an event may be")
    oldest_event_ms: int = Field(946_684_800_000, description="events before this (default: 2000-01-01) are rejected")
    max_stream_lag_ms: int = Field(600_000, ge=1_000, description="a stream left behind for this long is closed")
    modality_memory_ms: int = Field(600_000, ge=0, description="how long a stream has a modality after its last event")
    max_pane_events: int = Field(100_000, ge=1, description="most events of a stream and modality in one hop")
    max_streams: int = Field(100_000, ge=1, description="most streams that one worker holds at the same time")

    @model_validator(mode="after")
    def _hop_divides_size(self) -> WindowSettings:
        if self.hop_ms > self.size_ms or self.size_ms % self.hop_ms:
            raise ValueError(f"hop_ms={self.hop_ms} must divide size_ms={self.size_ms}")
        return self


class KafkaSecurity(Section):
    """TLS and SASL towards a cluster that is not ours; passed through to every client."""

    protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = Field(
        "PLAINTEXT", description="TLS (SSL), user and password (SASL), both or none"
    )
    ca_file: Path | None = Field(None, description="certificates to trust (PEM); unset: those of the system")
    cert_file: Path | None = Field(None, description="our certificate (PEM), where brokers ask for one")
    key_file: Path | None = Field(None, description="its key (PEM)")
    key_password: SecretStr | None = Field(None, description="password of the key")
    mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = Field("PLAIN", description="SASL mechanism")
    username: str | None = Field(None, description="SASL user")
    password: SecretStr | None = Field(None, description="SASL password")


class AudioSettings(Section):
    """Limits on clips before and while they are decoded."""

    max_bytes: int = Field(10_485_760, ge=1, description="largest encoded clip")
    max_seconds: float = Field(60.0, gt=0, description="longest clip")
    max_channels: int = Field(2, ge=1, description="most channels of a clip")
    min_rate_hz: int = Field(8_000, ge=1, description="lowest sampling rate")
    max_rate_hz: int = Field(96_000, ge=1, description="highest sampling rate")
    decode_timeout_s: float = Field(5.0, gt=0, description="wall time one clip may take in the decoder child")
    claim_roots: tuple[Path, ...] = Field((), description="folders that claim checks (file URIs) may point into")


class DriftSettings(Section):
    """When a stream raises an incident."""

    false_incidents_per_week: float = Field(1.0, gt=0, le=1000, description="tolerated false incidents per stream")


class Settings(BaseSettings):
    """All settings of all roles."""

    model_config = SettingsConfigDict(
        env_prefix="SENSORIUM_",
        env_nested_delimiter="__",
        extra="forbid",
        toml_file="sensorium.toml",
        frozen=True,
        allow_inf_nan=False,
    )

    state: Path = Field(Path("sensorium-state"), description="folder for the embedded broker's and store's data")
    kafka: str | None = Field(None, description="bootstrap servers host:port[,...]; unset: the embedded Kafka")
    store: str | None = Field(None, description="edge:DIR or http://host:6333; unset: edge:<state>/store")
    store_grpc_port: int = Field(6334, description="gRPC port of a Qdrant server")
    store_api_key: SecretStr | None = Field(None, description="API key of a Qdrant server")
    store_shards: int = Field(1, ge=1, description="shards of the collection when we create it")
    store_replicas: int = Field(1, ge=1, description="replicas of each shard when we create it")
    retention_days: float | None = Field(None, gt=0, description="older windows (event time) are deleted; unset: kept")
    model: Path | None = Field(None, description="model folder; unset: the weights that ship with the package")
    collection: str = Field("windows", description="name of the collection, or the first part of its name")
    topic_prefix: str = Field("", pattern=r"^[A-Za-z0-9._-]*$", description="put before every topic name")
    group: str = Field("sensorium", description="consumer group, shared by the workers of one installation")
    partitions: int = Field(4, ge=1, le=1024, description="partitions of each topic when we create it")
    replication: int = Field(1, ge=1, description="replicas of each topic when we create it")
    topic_retention_hours: float | None = Field(
        None, gt=0, description="how long input and window topics that we create are kept; unset: as the cluster does"
    )
    security: KafkaSecurity = KafkaSecurity()
    window: WindowSettings = WindowSettings()
    audio: AudioSettings = AudioSettings()
    drift: DriftSettings = DriftSettings()
    http_host: str = Field("127.0.0.1", description="where a worker serves health, metrics and the read-only API")
    http_port: int = Field(0, ge=0, le=65535, description="0: any free port, written to <state>/worker.json")
    broker_port: int = Field(0, ge=0, le=65535, description="port of the embedded Kafka; 0: any, then kept")
    batch_windows: int = Field(64, ge=1, le=256, description="most windows in one inference batch")
    batch_wait_ms: int = Field(100, ge=0, description="longest wait to fill an inference batch")
    detector_cache_mb: int = Field(2_048, ge=1, description="memory for detectors; the others are read from the store")
    session_timeout_s: float = Field(10.0, ge=6, description="after this silence a dead worker's partitions move on")
    max_record_bytes: int = Field(67_108_864, description="largest Kafka record we create topics for")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="least level that is logged")
    log_format: Literal["console", "json"] = Field("console", description="for people, or one JSON object a line")

    @field_validator("store")
    @classmethod
    def _known_store(cls, value: str | None) -> str | None:
        if value is not None and not value.startswith(("edge:", "http://", "https://")):
            raise ValueError(f"{value!r} is neither edge:DIR nor http(s)://host:port")
        return value

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls, toml_file=_settings_file())

    @property
    def store_url(self) -> str:
        return self.store or f"edge:{self.state / 'store'}"

    def topic(self, name: str) -> str:
        """Full name of one of our topics."""
        return self.topic_prefix + name


def load_settings(**overrides: Any) -> Settings:
    """Settings in force; `None` overrides are ignored so that flags can be passed as they come.

    Raises `SettingsError` with one line per wrong setting.
    """
    try:
        return Settings(**{k: v for k, v in overrides.items() if v is not None})
    except ValidationError as error:
        lines = []
        for problem in error.errors():
            where = ".".join(str(part) for part in problem["loc"])
            message = problem["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
            if problem["type"] == "extra_forbidden":
                message = "there is no such setting; all of them are in the README, under Configuration"
            given = f"--{where}" if overrides.get(where) is not None else origin_of(where)
            origin = "" if given == "default" else f" (from {given})"
            lines.append(f"setting {where}{origin}: {message}" if where else message)
        raise SettingsError("\n".join(lines)) from None
    except SettingsError:
        raise
    except (OSError, ValueError) as error:
        if "EnvSettingsSource" in str(error):  # a table given whole must be JSON
            name = str(error).split('"')[1]
            raise SettingsError(
                f"SENSORIUM_{name.upper()} is not JSON; set one field of it, as in SENSORIUM_WINDOW__SIZE_MS=5000"
            ) from None
        raise SettingsError(f"cannot read the settings file {_settings_file()}: {error}") from None


def origin_of(name: str) -> str:
    """The variable or file that a setting (dotted name) was given in, or `default`."""
    variable = "SENSORIUM_" + name.upper().replace(".", "__")
    if any(key.upper() == variable for key in os.environ):
        return variable
    parent = "SENSORIUM_" + name.split(".")[0].upper()
    if "." in name and parent in os.environ:
        return parent
    path = Path(os.environ.get("SENSORIUM_CONFIG", "sensorium.toml"))
    here: Any = tomllib.loads(path.read_text()) if path.is_file() else {}
    for part in name.split("."):
        if not isinstance(here, dict) or part not in here:
            return "default"
        here = here[part]
    return str(path)


def _settings_file() -> Path:
    """The settings file that counts. One that is named must be there; `sensorium.toml` need not."""
    named = os.environ.get("SENSORIUM_CONFIG")
    if named is not None and not Path(named).is_file():
        raise SettingsError(f"SENSORIUM_CONFIG={named}: no such file; write it with: sensorium config show > {named}")
    return Path(named or "sensorium.toml")
