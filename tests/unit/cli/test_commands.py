"""The `sensorium` command: help, errors in one line, exit statuses, settings. Needs no broker."""

from __future__ import annotations

import json
import logging
import shlex
import signal
import socket
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
import typer
from typer.testing import CliRunner

from streams import cli
from streams.cli import common
from streams.errors import ConfigError, DependencyError
from streams.settings import Settings, SettingsError, load_settings

COMMAND = str(Path(sys.executable).with_name("sensorium"))


def commands(group: Any = None, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command and group of commands, with its path."""
    group = group or typer.main.get_command(cli.app)
    for name, command in group.commands.items():
        yield (*path, name), command
        if hasattr(command, "commands"):
            yield from commands(command, (*path, name))


ALL = list(commands())
LEAVES = [(path, command) for path, command in ALL if not hasattr(command, "commands")]
OURS = [(path, command) for path, command in LEAVES if path[0] not in ("model", "train", "eval")]
EXAMPLES = [
    (path, line.strip())
    for path, command in LEAVES
    for line in (command.epilog or "").splitlines()
    if line.startswith("  ")
]


class Result:
    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def line(self) -> str:
        """The only line on standard error."""
        lines = self.err.strip().splitlines()
        assert len(lines) == 1, self.err
        return lines[0]


@pytest.fixture
def sensorium(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Any:
    """Run the command in this process, in an empty folder, as the entry point does."""
    monkeypatch.chdir(tmp_path)

    def run(line: str) -> Result:
        monkeypatch.setattr(sys, "argv", ["sensorium", *shlex.split(line)])
        capfd.readouterr()
        try:
            cli.main()
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        captured = capfd.readouterr()
        return Result(code, captured.out, captured.err)

    return run


# -- help ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("path", "command"), ALL, ids=[" ".join(path) for path, _ in ALL])
def test_every_command_and_option_has_a_help_text(path: tuple[str, ...], command: Any) -> None:
    result = CliRunner().invoke(cli.app, [*path, "--help"])
    assert result.exit_code == 0
    assert command.help
    for parameter in getattr(command, "params", []):
        assert getattr(parameter, "help", None), f"{parameter.name} of {path} has no help"


@pytest.mark.parametrize(("path", "command"), OURS, ids=[" ".join(path) for path, _ in OURS])
def test_the_lists_of_commands_are_not_cut_off(path: tuple[str, ...], command: Any) -> None:
    assert not command.get_short_help_str(limit=66).endswith("...")


@pytest.mark.parametrize(("path", "line"), EXAMPLES, ids=[line for _, line in EXAMPLES])
def test_examples_call_their_command_with_valid_options(path: tuple[str, ...], line: str) -> None:
    words = shlex.split(line, comments=True)
    words = words[: words.index("|")] if "|" in words else words
    words = words[: words.index(">")] if ">" in words else words
    while "=" in words[0]:
        words.pop(0)
    assert tuple(words[: len(path) + 1]) == ("sensorium", *path)
    command = dict(ALL)[path]
    command.make_context(" ".join(path), words[len(path) + 1 :])  # raises where an option or argument is unknown


@pytest.mark.parametrize(("path", "command"), OURS, ids=[" ".join(path) for path, _ in OURS])
def test_every_command_shows_an_example(path: tuple[str, ...], command: Any) -> None:
    assert any(found == path for found, _ in EXAMPLES)


# -- errors ----------------------------------------------------------------------------------------------------------

WRONG = [
    # line, status, what the one line must name: the error and its remedy
    ("nosuch", 2, ("nosuch", "sensorium --help")),
    ("search --nope", 2, ("--nope", "sensorium search --help")),
    ("search --text a --limit many", 2, ("--limit", "sensorium search --help")),
    ("search", 2, ("--text", "--audio", "--window", "as in: sensorium search")),
    ("search --text a --window b", 2, ("give one of",)),
    ("search --text a --from yesterday", 2, ("yesterday", "2026-01-01T12:00:00Z")),
    ("search --text a --from 2026-01-01T00:00:00+25:00", 2, ("is not a time",)),
    ("search --text a --from 2026-01-02 --to 2026-01-01", 2, ("--from", "not before", "--to")),
    ("incidents --from ²", 2, ("is not a time",)),
    ("search --audio nosuch.wav", 5, ("nosuch.wav", "No such file")),
    ("search --text a", 5, ("nothing is stored", "sensorium up --state")),
    ("streams", 5, ("nothing is stored", "sensorium up --state")),
    ("incidents --against nosuch.csv", 5, ("nosuch.csv",)),
    ("export --out x.jsonl", 5, ("nothing is stored",)),
    ("export --out no/such/x.jsonl", 2, ("no/such", "mkdir -p")),
    ("replay nosuch", 5, ("nosuch", "sensorium simulate --out nosuch")),
    ("replay . --speed 0", 2, ("--speed 0", "--speed 60")),
    ("replay . --speed nan", 2, ("--speed nan",)),
    ("replay . --speed inf", 2, ("--speed inf",)),
    ("replay . --speed fast", 2, ("--speed fast",)),
    ("replay . --report no/such/r.json", 2, ("no/such", "mkdir -p")),
    ("simulate --out .", 2, (". exists already",)),
    ("simulate --speed 0", 2, ("--speed",)),
    ("simulate --seconds 5", 4, ("no Kafka runs on", "sensorium up --state")),
    ("worker", 4, ("no Kafka runs on", "sensorium up --state", "SENSORIUM_KAFKA")),
    ("topics create", 4, ("no Kafka runs on",)),
    ("topics describe --kafka 127.0.0.1:1", 4, ("127.0.0.1:1", "does not answer", "sensorium doctor --kafka")),
    ("simulate --kafka 127.0.0.1:1 --seconds 5", 4, ("127.0.0.1:1", "does not answer")),
    ("dlq ls", 4, ("no Kafka runs on",)),
    ("dlq ls --reason nosuch", 2, ("nosuch", "not_json", "claim_missing")),
    ("dlq retry", 2, ("sensorium dlq retry TOPIC/PARTITION/OFFSET",)),
    ("search --text a --store http://127.0.0.1:1", 4, ("http://127.0.0.1:1", "--store", "store_grpc_port")),
    ("up --kafka 127.0.0.1:1", 4, ("127.0.0.1:1", "does not answer", "sensorium doctor --kafka")),
    ("worker --kafka 127.0.0.1:1", 4, ("127.0.0.1:1", "does not answer", "sensorium doctor --kafka")),
    ("up --store nonsense", 3, ("store", "--store", "edge:DIR")),
    ("broker --port 70000", 2, ("--port",)),
]


@pytest.mark.parametrize(("line", "code", "named"), WRONG, ids=[line for line, *_ in WRONG])
def test_an_error_is_one_line_with_its_remedy(sensorium: Any, line: str, code: int, named: tuple[str, ...]) -> None:
    result = sensorium(line)
    assert result.code == code, result.err
    assert result.out == ""
    assert all(name in result.line for name in named), result.line


@pytest.mark.parametrize(
    ("variable", "value", "named"),
    [
        ("SENSORIUM_PARTITIONS", "many", ("partitions", "SENSORIUM_PARTITIONS", "integer")),
        ("SENSORIUM_WINDOW__HOP_MS", "3000", ("hop_ms=3000 must divide size_ms=10000",)),
        ("SENSORIUM_WINDOW", "x", ("SENSORIUM_WINDOW", "SENSORIUM_WINDOW__SIZE_MS=5000")),
        ("SENSORIUM_CONFIG", "nosuch.toml", ("nosuch.toml", "sensorium config show > nosuch.toml")),
        ("SENSORIUM_MODEL", "/no/such/model", ("/no/such/model", "unset it")),
        ("SENSORIUM_AUDIO__CLAIM_ROOTS", '["/no/such"]', ("/no/such", "claim checks")),
        ("SENSORIUM_REPLICATION", "3", ("SENSORIUM_KAFKA",)),
        ("SENSORIUM_PARTITION", "8", ("SENSORIUM_PARTITION is no setting", "SENSORIUM_PARTITIONS is one")),
        ("SENSORIUM_WINDOW__SIZE", "8", ("window.size", "no such setting")),
        ("SENSORIUM_LOG_LEVEL", "loud", ("log_level", "'debug'")),
    ],
)
def test_a_wrong_setting_is_named_with_its_origin(
    sensorium: Any, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, named: tuple[str, ...]
) -> None:
    monkeypatch.setenv(variable, value)
    result = sensorium("config check")
    assert result.code == ConfigError.exit_code
    assert all(name in result.line for name in named), result.line


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("x = [", ("cannot read the settings file sensorium.toml",)),
        ("windw = 3", ("windw", "sensorium.toml", "no such setting", "README")),
        ("[window]\nsize = 3", ("window.size", "no such setting")),
        ("partitions = 0", ("partitions", "sensorium.toml", "greater than or equal to 1")),
    ],
)
def test_a_wrong_settings_file_is_named(sensorium: Any, tmp_path: Path, text: str, named: tuple[str, ...]) -> None:
    (tmp_path / "sensorium.toml").write_text(text)
    result = sensorium("config check")
    assert result.code == ConfigError.exit_code
    assert all(name in result.line for name in named), result.line


@pytest.mark.parametrize("command", ["config check", "up", "worker"])
def test_settings_that_contradict_each_other_are_reported_before_anything_starts(
    sensorium: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, command: str
) -> None:
    monkeypatch.setenv("SENSORIUM_SECURITY__PROTOCOL", "SASL_SSL")
    result = sensorium(command)
    assert result.code == ConfigError.exit_code
    assert "needs security.username and security.password" in result.err
    assert "needs a cluster" in result.err
    assert not (tmp_path / "sensorium-state").exists()


def test_all_wrong_settings_are_reported_at_once(sensorium: Any, tmp_path: Path) -> None:
    (tmp_path / "sensorium.toml").write_text("partitions = 0\nhttp_port = 99999\n")
    result = sensorium("config check")
    assert ("partitions" in result.err, "http_port" in result.err, result.code) == (True, True, 3)


def test_a_port_that_is_taken_is_reported_by_its_number() -> None:
    from streams.api.server import serve

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        settings = load_settings(http_port=port)

        async def start() -> None:
            async with serve(None, settings):  # type: ignore[arg-type]
                raise AssertionError("served on a port that is taken")

        with pytest.raises(OSError, match=f"{port}.*SENSORIUM_HTTP_PORT") as caught:
            common.run_async(start())
    assert common.exit_code(caught.value) == DependencyError.exit_code


def test_markup_in_user_input_is_printed_as_text(sensorium: Any) -> None:
    assert "[bold]x[/bold]" in sensorium("search --text a --from '[bold]x[/bold]'").line


def test_a_command_that_is_terminated_cleans_up(tmp_path: Path) -> None:
    script = (
        "import asyncio, sys\nfrom streams.cli.common import run_async\n"
        "async def work():\n    print('begun', flush=True)\n    try: await asyncio.sleep(60)\n"
        "    finally: print('cleaned up', flush=True)\n"
        "import typer\ntry: run_async(work())\nexcept typer.Exit as end: sys.exit(end.exit_code)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, cwd=tmp_path)
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    process.send_signal(signal.SIGTERM)
    assert process.stdout.read() == "cleaned up\n"
    assert process.wait(20) == 128 + signal.SIGTERM


def test_a_closed_pipe_is_not_an_error() -> None:
    line = f"{shlex.quote(COMMAND)} config show | head -1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", line], capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert done.stdout.startswith("# ")


# -- settings --------------------------------------------------------------------------------------------------------


def test_options_override_the_environment_the_file_and_the_defaults(
    sensorium: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "sensorium.toml").write_text('state = "of-file"\nkafka = "of-file:1"\ngroup = "of-file"\n')
    monkeypatch.setenv("SENSORIUM_STATE", "of-environment")
    monkeypatch.setenv("SENSORIUM_KAFKA", "of-environment:1")
    shown = json.loads(sensorium("config show --json --kafka of-flag:1").out)
    names = ("kafka", "state", "group", "partitions")
    assert {name: (shown[name]["value"], shown[name]["from"]) for name in names} == {
        "kafka": ("of-flag:1", "--kafka"),
        "state": ("of-environment", "SENSORIUM_STATE"),
        "group": ("of-file", "sensorium.toml"),
        "partitions": ("4", "default"),
    }


def test_the_output_of_config_show_is_an_equivalent_settings_file(
    sensorium: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SENSORIUM_TOPIC_PREFIX", "a.")
    monkeypatch.setenv("SENSORIUM_AUDIO__CLAIM_ROOTS", json.dumps([str(tmp_path)]))
    before = load_settings()
    (tmp_path / "sensorium.toml").write_text(sensorium("config show").out)
    monkeypatch.delenv("SENSORIUM_TOPIC_PREFIX")
    monkeypatch.delenv("SENSORIUM_AUDIO__CLAIM_ROOTS")
    assert load_settings() == before
    assert tomllib.loads((tmp_path / "sensorium.toml").read_text())["window"]["size_ms"] == 10_000


def test_secrets_are_not_shown(sensorium: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SENSORIUM_SECURITY__PASSWORD", "hunter2")
    monkeypatch.setenv("SENSORIUM_STORE_API_KEY", "hunter3")
    assert "hunter" not in sensorium("config show").out + sensorium("config show --json").out


def test_valid_settings_pass_the_check(sensorium: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SENSORIUM_SERVICE_HOST", "10.0.0.1")  # as Kubernetes sets for a service of our name
    monkeypatch.setenv("SENSORIUM_WINDOW", '{"size_ms": 5000, "hop_ms": 5000}')
    result = sensorium("config check")
    assert (result.code, result.out, result.err) == (0, "settings are fine\n", "")


def test_every_setting_has_a_description() -> None:
    from streams.settings_report import settings_in_force

    assert [row.name for row in settings_in_force(Settings()) if not row.meaning] == []


# -- shared code -----------------------------------------------------------------------------------------------------


def test_times_are_read_and_shown_as_utc() -> None:
    assert common.parse_time("2026-01-01T01:00:00+01:00") == common.parse_time("2026-01-01") == 1_767_225_600_000
    assert common.parse_time("1767225600000") == 1_767_225_600_000
    assert common.clock(1_767_225_600_000) == "2026-01-01 00:00:00"
    assert common.clock(10**18) == str(10**18)


def test_output_to_a_pipe_is_neither_cut_nor_wrapped(capsys: pytest.CaptureFixture[str]) -> None:
    assert not common.console.is_terminal
    common.print_table(("a", "b"), [("x" * 300, "[bold]y")], folded=1)
    assert capsys.readouterr().out.splitlines()[1] == "x" * 300 + "  [bold]y"


def test_a_group_of_errors_is_reported_by_its_first() -> None:
    async def fail() -> None:
        raise ExceptionGroup("tasks", [ExceptionGroup("more", [SettingsError("that one")])])

    with pytest.raises(SettingsError, match="that one"):
        common.run_async(fail())


@pytest.mark.parametrize(
    ("service", "level", "logged"), [(False, "info", False), (True, "info", True), (False, "debug", True)]
)
def test_library_warnings_are_logged_by_services_only(
    service: bool, level: str, logged: bool, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from streams.logs import configure_logs

    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", list(root.handlers))
    try:
        configure_logs(load_settings(log_level=level), service=service)
        logging.getLogger("aiokafka.consumer.fetcher").warning("detail of a library")
        assert ("detail of a library" in capfd.readouterr().err) is logged
    finally:
        configure_logs(load_settings())


def test_logs_can_be_one_json_object_a_line(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from streams.logs import configure_logs

    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", list(root.handlers))
    try:
        configure_logs(load_settings(log_format="json"))
        structlog.get_logger("streams.serving.worker").info("assigned", partitions=4)
        logging.getLogger("faust").warning("of a library")
        try:
            raise ValueError("with a cause")
        except ValueError:
            structlog.get_logger("streams.serving.worker").exception("broken")
        lines = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    finally:
        configure_logs(load_settings())
    assert [line["event"] for line in lines] == ["assigned", "of a library", "broken"]
    assert (lines[0]["partitions"], lines[0]["logger"], lines[0]["level"]) == (4, "streams.serving.worker", "info")
    assert all("timestamp" in line for line in lines)
    assert "with a cause" in lines[2]["exception"]


def test_commands_start_quickly_without_torch() -> None:
    script = "import sys, streams.cli; sys.exit('torch' in sys.modules or 'faust' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_the_address_file_of_a_killed_worker_is_ignored(tmp_path: Path) -> None:
    import os

    from streams.serving.client import worker_url

    note = {"url": "http://127.0.0.1:1", "pid": os.getpid(), "store": "edge:/x"}  # nothing listens there
    (tmp_path / "worker.json").write_text(json.dumps(note))
    assert worker_url(tmp_path) is None


def test_a_worker_is_queried_only_about_its_own_store(tmp_path: Path) -> None:
    import os

    from streams.serving.client import worker_url

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        note = {"url": url, "pid": os.getpid(), "store": f"edge:{tmp_path}/store"}
        (tmp_path / "worker.json").write_text(json.dumps(note))
        assert worker_url(tmp_path, f"edge:{tmp_path}/x/../store") == url
        assert worker_url(tmp_path, "http://qdrant:6333") is None


def test_folders_of_killed_demos_are_removed_and_those_of_running_ones_are_not(tmp_path: Path) -> None:
    import fcntl

    from streams.cli.demo import remove_abandoned

    dead, running = tmp_path / "sensorium-demo-dead", tmp_path / "sensorium-demo-alive"
    for folder in (dead, running):
        (folder / "kafka").mkdir(parents=True)
        (folder / "demo.lock").touch()
    other = tmp_path / "something-else"
    other.mkdir()
    with (running / "demo.lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert remove_abandoned(tmp_path, min_age_s=3_600) == []  # a demo that is just starting
        assert remove_abandoned(tmp_path, min_age_s=0) == [dead]
    assert (dead.exists(), running.exists(), other.exists()) == (False, True, True)
