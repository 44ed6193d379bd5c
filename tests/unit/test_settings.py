"""Settings come from defaults, file, environment and flags, later ones win; a wrong one is one line that names it."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

import pytest

import streams.settings as settings_module
from streams.settings import Settings, SettingsError, load_settings
from streams.settings_report import settings_in_force


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write(text: str, name: str = "sensorium.toml") -> None:
    Path(name).write_text(text)


def complaint(**overrides: object) -> str:
    with pytest.raises(SettingsError) as caught:
        load_settings(**overrides)
    return str(caught.value)


def test_without_anything_the_defaults_are_in_force() -> None:
    settings = load_settings()
    assert (settings.window.size_ms, settings.window.disorder_ms.audio, settings.partitions) == (10_000, 2_000, 4)
    assert settings.store_url == "edge:sensorium-state/store"


def test_the_file_beats_the_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    write('group = "night"\n[window]\nsize_ms = 4000\nhop_ms = 2000\n')
    settings = load_settings()
    assert (settings.group, settings.window.size_ms, settings.window.hop_ms) == ("night", 4_000, 2_000)
    assert settings.window.allowed_lateness_ms == 30_000


def test_the_environment_beats_the_file_field_by_field(monkeypatch: pytest.MonkeyPatch) -> None:
    write('group = "night"\n[window]\nsize_ms = 4000\nhop_ms = 2000\n')
    monkeypatch.setenv("SENSORIUM_WINDOW__HOP_MS", "1000")
    monkeypatch.setenv("SENSORIUM_WINDOW__DISORDER_MS__SENSOR", "7")
    monkeypatch.setenv("SENSORIUM_WINDOW__DISORDER_MS__AUDIO", "8")
    monkeypatch.setenv("SENSORIUM_WINDOW__DISORDER_MS__CAPTION", "9")
    window = load_settings().window
    assert (window.size_ms, window.hop_ms) == (4_000, 1_000)
    assert (window.disorder_ms.sensor, window.disorder_ms.audio, window.disorder_ms.caption) == (7, 8, 9)


def test_flags_beat_everything_and_flags_that_were_not_given_beat_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    write('group = "file"\npartitions = 2\n')
    monkeypatch.setenv("SENSORIUM_GROUP", "environment")
    settings = load_settings(group="flag", partitions=None)
    assert (settings.group, settings.partitions) == ("flag", 2)


def test_another_file_can_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    write('group = "other"\n', "other.toml")
    monkeypatch.setenv("SENSORIUM_CONFIG", "other.toml")
    assert load_settings().group == "other"


@pytest.mark.parametrize(
    ("variable", "value", "named"),
    [
        ("SENSORIUM_PARTITIONS", "0", "partitions"),
        ("SENSORIUM_PARTITIONS", "many", "partitions"),
        ("SENSORIUM_STORE", "mysql://here", "store"),
        ("SENSORIUM_TOPIC_PREFIX", "a b", "topic_prefix"),
        ("SENSORIUM_LOG_LEVEL", "loud", "log_level"),
        ("SENSORIUM_HTTP_PORT", "65536", "http_port"),
        ("SENSORIUM_RETENTION_DAYS", "inf", "retention_days"),
        ("SENSORIUM_RETENTION_DAYS", "nan", "retention_days"),
        ("SENSORIUM_SESSION_TIMEOUT_S", "1", "session_timeout_s"),
        ("SENSORIUM_SESSION_TIMEOUT_S", "inf", "session_timeout_s"),
        ("SENSORIUM_WINDOW__SIZE_MS", "7000", "window"),  # hop_ms does not divide it
        ("SENSORIUM_WINDOW__SIZE_MS", "99", "window.size_ms"),
        ("SENSORIUM_WINDOW__HOP_MS", "20000", "window"),
        ("SENSORIUM_WINDOW__ALLOWED_LATENESS_MS", "-1", "window.allowed_lateness_ms"),
        ("SENSORIUM_DRIFT__FALSE_INCIDENTS_PER_WEEK", "0", "drift.false_incidents_per_week"),
        ("SENSORIUM_DRIFT__FALSE_INCIDENTS_PER_WEEK", "nan", "drift.false_incidents_per_week"),
        ("SENSORIUM_AUDIO__MAX_BYTES", "-1", "audio.max_bytes"),
        ("SENSORIUM_SECURITY__PROTOCOL", "CARRIER_PIGEON", "security.protocol"),
    ],
)
def test_a_wrong_value_is_one_line_that_names_it(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, named: str
) -> None:
    monkeypatch.setenv(variable, value)
    said = complaint()
    assert said.startswith(f"setting {named}")
    assert "\n" not in said


def test_a_negative_disorder_bound_is_refused() -> None:
    write("[window.disorder_ms]\nsensor = -1\naudio = 0\ncaption = 0\n")
    assert "window.disorder_ms.sensor" in complaint()


def test_several_wrong_values_are_several_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SENSORIUM_PARTITIONS", "0")
    monkeypatch.setenv("SENSORIUM_STORE", "nowhere")
    assert len(complaint().splitlines()) == 2


def test_a_setting_that_does_not_exist_is_named() -> None:
    write("[window]\nsise_ms = 4000\n")
    assert "window.sise_ms" in complaint()


def test_a_file_that_is_not_toml_is_named() -> None:
    write("window = [\n")
    assert "sensorium.toml" in complaint()


def test_secrets_are_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SENSORIUM_STORE_API_KEY", "sesame")
    monkeypatch.setenv("SENSORIUM_SECURITY__PASSWORD", "sesame")
    assert "sesame" not in repr(load_settings())


def test_settings_cannot_be_changed_behind_anybodys_back() -> None:
    settings = load_settings()
    with pytest.raises(ValueError, match="frozen"):
        settings.group = "other"  # type: ignore[misc]


def test_topics_get_the_prefix() -> None:
    assert Settings(topic_prefix="night.").topic("windows") == "night.windows"
    assert Settings(store="http://qdrant:6333").store_url == "http://qdrant:6333"


def test_every_setting_is_read_somewhere() -> None:
    """By attribute, outside of the settings themselves: one that nothing reads would promise what it does not do."""
    package = Path(settings_module.__file__).parent
    read = {
        node.attr
        for path in package.rglob("*.py")
        if path.name not in ("settings.py", "settings_report.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute)
    }
    read |= {node.attr for node in ast.walk(ast.parse(inspect.getsource(Settings))) if isinstance(node, ast.Attribute)}
    assert [row.name for row in settings_in_force(Settings()) if row.name.split(".")[-1] not in read] == []
