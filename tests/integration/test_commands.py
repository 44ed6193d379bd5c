"""Every command on the embedded Kafka and store, as a user runs them: while `sensorium up` runs, and after it ended."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from streams import cli
from streams.sources.plant_recording import write_recording
from streams.sources.simulator import Plant, plan_faults

pytestmark = [pytest.mark.kafka, pytest.mark.slow]

COMMAND = str(Path(sys.executable).with_name("sensorium"))
DAY_MS = 86_400_000
FIRST_DAY_MS = 1_767_225_600_000  # 2026-01-01
GIVE_UP_S = 90.0


class Result:
    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@dataclass
class Process:
    """A command of its own that runs for a while; what it says is read as it comes."""

    process: subprocess.Popen[str]
    lines: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        self.lines.extend(self.process.stdout)  # one by one, as they come

    @property
    def said(self) -> str:
        return "".join(self.lines)

    def wait_for(self, text: str) -> None:
        until(lambda: text in self.said or self.process.poll() is not None, f"{text!r} of the command")
        assert text in self.said, self.said

    def descendants(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


def until(condition: Callable[[], Any], what: str) -> None:
    deadline = time.monotonic() + GIVE_UP_S
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.05)


class House:
    """One state folder and whatever runs on it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.state = folder / "state"
        self.environment = {key: value for key, value in os.environ.items() if not key.startswith("SENSORIUM_")}
        for name in ("SENSORIUM_CACHE", "SENSORIUM_MAVEN"):
            if name in os.environ:
                self.environment[name] = os.environ[name]
        self.live: dict[str, Any] = {}  # answers of the running worker
        self._running: list[Process] = []

    def start(self, line: str) -> Process:
        process = Process(
            subprocess.Popen(
                [COMMAND, *shlex.split(line)],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                cwd=self.folder,
                env=self.environment,
            )
        )
        self._running.append(process)
        return process

    @property
    def url(self) -> str:
        return str(json.loads((self.state / "worker.json").read_text())["url"])

    def get(self, path: str) -> httpx.Response:
        return httpx.get(self.url + path, trust_env=False, timeout=30)

    def close(self) -> None:
        for process in self._running:
            process.end()


@pytest.fixture(scope="module")
def house(kafka_jars: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    house = House(tmp_path_factory.mktemp("house"))
    (house.folder / "sensorium.toml").write_text("[window]\nidle_timeout_ms = 2000\n")
    for day, seconds in ((0, 900), (1, 1_800)):
        start_ms = FIRST_DAY_MS + day * DAY_MS
        faults = plan_faults(start_ms + 600_000, start_ms + 700_000, seed=11, streams=3)
        plant = Plant(3, 11, faults)
        write_recording(plant, start_ms, start_ms + seconds * 1000, house.folder / f"day-{day}")
    try:
        yield house
    finally:
        house.close()


@pytest.fixture(scope="module")
def up(house: House) -> Process:
    """`sensorium up`, which has been played the first day."""
    up = house.start("up --state state")
    up.wait_for("ready; Ctrl-C stops")
    report = house.folder / "report.json"
    replay = house.start(f"replay day-0 --state state --report {report}")
    until(lambda: replay.process.poll() is not None, "the end of the replay")
    assert replay.process.returncode == 0, replay.said + up.said
    house.live["report"] = json.loads(report.read_text())
    return up


@pytest.fixture
def sensorium(
    house: House, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[[str], Result]:
    """Run a command in this process, as the entry point does, from the folder of the house."""
    monkeypatch.chdir(house.folder)
    monkeypatch.setenv("SENSORIUM_STATE", "state")

    def run(line: str) -> Result:
        monkeypatch.setattr(sys, "argv", ["sensorium", *shlex.split(line)])
        capfd.readouterr()
        code = 0
        try:
            cli.main()
        except SystemExit as end:
            code = int(end.code or 0)
        said = capfd.readouterr()
        return Result(code, said.out, said.err)

    return run


Run = Callable[[str], Result]
QUESTIONS = (
    "streams --json",
    "incidents --json --to 2026-01-02",
    "search --json --text 'grinding noise' --to 2026-01-02",
    "search --json --audio day-0/audio/{clip} --to 2026-01-02 --limit 3",
    "search --json --window {window} --to 2026-01-02",
)


def ask_all(house: House, run: Run) -> dict[str, Any]:
    clip = sorted((house.folder / "day-0" / "audio").iterdir())[0].name
    window = house.live.setdefault("window", run("search --json --text pump").json[0]["id"])
    answers = {}
    for question in QUESTIONS:
        result = run(question.format(clip=clip, window=window))
        assert result.code == 0, result.err
        answers[question] = result.json
    return answers


# -- while it runs ---------------------------------------------------------------------------------------------------


def test_replay_accounts_for_every_event(house: House, up: Process) -> None:
    report = house.live["report"]
    events = report["events"]
    rows = sum(len(path.read_text().splitlines()) - 1 for path in (house.folder / "day-0").rglob("*.csv"))
    labels = len((house.folder / "day-0" / "labels.csv").read_text().splitlines()) - 1
    assert events["produced"] == rows - labels
    assert events["produced"] == events["windowed"] + events["duplicate"] + events["late"] + events["dead"]
    assert (report["labels"]["total"], report["labels"]["found"]) == (1, 1)


def test_questions_are_answered_by_the_process_that_has_the_store(house: House, up: Process, sensorium: Run) -> None:
    house.live["answers"] = answers = ask_all(house, sensorium)
    assert [row["stream"] for row in answers["streams --json"]] == ["compressor", "conveyor", "feed-pump"]
    assert sum(row["windows"] for row in answers["streams --json"]) == house.live["report"]["windows"]
    assert len(answers["incidents --json --to 2026-01-02"]) == house.live["report"]["incidents"] > 0
    assert all(len(answer) > 0 for answer in answers.values())


def test_export_is_sorted_and_complete(house: House, up: Process, sensorium: Run) -> None:
    assert sensorium("export --out first.jsonl").code == 0
    rows = [json.loads(line) for line in (house.folder / "first.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == sorted({row["id"] for row in rows})
    assert len(rows) == house.live["report"]["windows"]
    assert sum(sum(row["events"].values()) for row in rows) == house.live["report"]["events"]["windowed"]


def test_what_people_read_says_the_same_as_what_programs_read(house: House, up: Process, sensorium: Run) -> None:
    incident = sensorium("incidents --json").json[0]
    shown = sensorium("incidents --against day-0/labels.csv").out
    assert incident["id"] in shown
    assert incident["text"].split(": ", 1)[1] in shown
    assert "1      1" in shown.split("together", 1)[1]  # one label, found
    moment = sensorium("search --json --text 'pump' --limit 1").json[0]
    assert moment["captions"][0] in sensorium("search --text 'pump' --limit 1").out
    streams = sensorium("streams").out.splitlines()
    assert [line.split()[0] for line in streams] == ["stream", "compressor", "conveyor", "feed-pump"]


def test_search_keeps_to_the_stream_and_the_time_asked_for(house: House, up: Process, sensorium: Run) -> None:
    line = "search --json --text pump --stream conveyor --from 2026-01-01T00:05:00Z --to 2026-01-01T00:06:00Z"
    rows = sensorium(line).json
    assert {row["stream"] for row in rows} == {"conveyor"}
    assert sorted(row["start"] for row in rows) == [FIRST_DAY_MS + 300_000 + n * 10_000 for n in range(6)]
    nothing = sensorium("search --text pump --stream nosuch")
    assert (nothing.code, "no moments of stream nosuch" in nothing.out) == (0, True)


@pytest.mark.parametrize(
    ("line", "code", "named"),
    [
        ("search --window 00000000-0000-0000-0000-000000000000", 5, "no window 00000000"),
        ("search --window nonsense", 5, "nonsense"),
        ("search --text ' '", 5, "nothing to search for"),
        ("search --audio first.jsonl", 5, "cannot use that sound"),
        ("up", 4, "is in use by another broker"),
        ("worker", 4, "is open in process"),
        ("broker", 4, "is in use by another broker"),
        ("dlq show sensor-readings/0/999999", 5, "no letter from sensor-readings/0/999999"),
        ("dlq show nonsense", 5, "no letter from nonsense"),
    ],
)
def test_errors_are_one_line_while_it_runs(
    house: House, up: Process, sensorium: Run, line: str, code: int, named: str
) -> None:
    result = sensorium(line)
    assert result.code == code, result.err
    assert named in result.err
    assert len(result.err.strip().splitlines()) == 1, result.err
    assert up.process.poll() is None


def test_topics_are_there_and_made_once(house: House, up: Process, sensorium: Run) -> None:
    assert sensorium("topics create").out == "all topics exist\n"
    described = {row["topic"]: row["partitions"] for row in sensorium("topics describe --json").json}
    assert described["sensor-readings"] == described["audio-clips"] == described["captions"] == 4
    assert "dead-letters" in sensorium("topics describe").out


def test_doctor_finds_everything_well(house: House, up: Process, sensorium: Run) -> None:
    result = sensorium("doctor --json")
    levels = {row["part"]: (row["level"], row["text"]) for row in result.json if row["level"] != "ok"}
    assert (levels, result.code) == ({}, 0)


def test_letters_can_be_listed_shown_and_sent_again(house: House, up: Process, sensorium: Run) -> None:
    bootstrap = next(row["text"] for row in sensorium("doctor --json").json if row["part"] == "kafka").split()[-1]
    assert sensorium("dlq ls").out == "no dead letters\n"
    send(bootstrap, b"not json \x1b[31m", b"feed-pump")
    until(lambda: sensorium("dlq ls --json").json, "the dead letter")
    [letter] = sensorium("dlq ls --json --reason not_json").json
    assert sensorium("dlq ls --reason no_key").out == "no dead letters\n"
    shown = sensorium(f"dlq show {letter['origin']}").out
    assert "not json \\x1b[31m" in shown
    assert "\x1b" not in shown  # it may not play tricks with our terminal
    assert "1 sent again" in sensorium("dlq retry --reason not_json").out
    until(lambda: len(sensorium("dlq ls --json").json) == 2, "the letter to come round again")
    assert max(letter["retries"] for letter in sensorium("dlq ls --json").json) == 1
    nothing = sensorium("dlq retry --reason no_key")
    assert (nothing.code, "nothing with reason no_key" in nothing.err) == (5, True)


def send(bootstrap: str, value: bytes, key: bytes) -> None:
    from aiokafka import AIOKafkaProducer

    from streams.cli.common import run_async

    async def produce() -> None:
        async with AIOKafkaProducer(bootstrap_servers=bootstrap) as producer:
            await producer.send_and_wait("sensor-readings", value, key=key)

    run_async(produce())


def test_what_the_readme_sends_with_python_arrives(house: House, up: Process) -> None:
    readme = (Path(__file__).resolve().parents[2] / "README.md").read_text()
    scripts = re.findall(r"^```python\n(.*?)^```$", readme, re.DOTALL | re.MULTILINE)
    [script] = [script for script in scripts if "AIOKafkaProducer" in script]
    port = json.loads((house.state / "kafka" / "broker.json").read_text())["port"]
    script = script.replace("127.0.0.1:9092", f"127.0.0.1:{port}")
    subprocess.run([sys.executable, "-c", script], check=True, cwd=house.folder)

    def windowed() -> bool:
        rows = house.get("/v1/windows?stream=pump-1").json()
        return bool(rows) and rows[0]["modalities"] == ["sensor", "caption"]

    until(windowed, "a window of what was sent")


def test_health_and_metrics_tell_what_was_done(house: House, up: Process) -> None:
    assert (house.get("/healthz").status_code, house.get("/readyz").status_code) == (200, 200)
    metrics = house.get("/metrics").text
    values = {line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in metrics.splitlines() if line[0] != "#"}
    windowed = sum(v for name, v in values.items() if name.startswith("sensorium_events_total") and "windowed" in name)
    assert windowed == house.live["report"]["events"]["windowed"] + 2  # and those of the README
    assert values['sensorium_windows_total{fate="new"}'] == house.live["report"]["windows"] + 1
    for name in (
        'sensorium_stage_seconds_count{stage="embed"}',
        'sensorium_stage_seconds_count{stage="store"}',
        "sensorium_batch_windows_count",
        "sensorium_loop_lag_seconds",
        'sensorium_lag_records{partition="0",topic="sensor-readings"}',
    ):
        assert name in values


def test_a_replay_of_what_was_replayed_before_is_accounted_for(house: House, up: Process, sensorium: Run) -> None:
    result = sensorium("replay day-0 --json")
    assert result.code == 0, result.err
    events = result.json["events"]
    assert events["produced"] == events["windowed"] + events["duplicate"] + events["late"] + events["dead"]
    assert (events["windowed"], events["dead"]) == (0, 0)


def test_sigterm_amid_a_replay_ends_everything_cleanly_with_status_0(house: House, up: Process) -> None:
    windows = house.get("/v1/streams").json()[0]["windows"]
    replay = house.start("replay day-1 --state state")
    until(lambda: house.get("/v1/streams").json()[0]["windows"] > windows, "windows of the second day")
    below = up.descendants()
    assert below
    up.process.send_signal(signal.SIGTERM)
    began = time.monotonic()
    assert up.process.wait(60) == 0, up.said
    took_s = time.monotonic() - began
    _, alive = psutil.wait_procs(below, 10)
    assert alive == []
    assert "Traceback" not in up.said, up.said
    assert not (house.state / "worker.json").exists()
    assert took_s < 30  # ten on an idle machine
    replay.process.send_signal(signal.SIGTERM)
    assert replay.process.wait(60) == 128 + signal.SIGTERM, replay.said
    assert "Traceback" not in replay.said, replay.said


@pytest.mark.parametrize("after_s", [0.0, 2.0])
def test_sigterm_while_starting_ends_with_status_0_and_leaves_nothing(tmp_path: Path, after_s: float) -> None:
    command = [COMMAND, "up", "--state", str(tmp_path / "state")]
    starting = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    until(psutil.Process(starting.pid).children, "a Kafka that starts")
    time.sleep(after_s)
    below = psutil.Process(starting.pid).children(recursive=True)
    starting.send_signal(signal.SIGTERM)
    said = starting.communicate(timeout=60)[1]
    assert starting.returncode == 0, said
    assert psutil.wait_procs(below, 10)[1] == []


# -- after it ended --------------------------------------------------------------------------------------------------


def test_the_same_questions_have_the_same_answers_from_the_folder(house: House, sensorium: Run) -> None:
    answers = ask_all(house, sensorium)
    before = house.live["answers"]
    for question in QUESTIONS[1:]:
        assert answers[question] == before[question], question
    assert sensorium("export --out second.jsonl").code == 0
    lines = set((house.folder / "second.jsonl").read_text().splitlines())
    assert set((house.folder / "first.jsonl").read_text().splitlines()) <= lines


def test_without_it_doctor_warns_and_says_how_to_start(house: House, sensorium: Run) -> None:
    result = sensorium("doctor --json")
    found = {row["part"]: row for row in result.json}
    assert result.code == 0
    assert (found["store"]["level"], found["kafka"]["level"], found["worker"]["level"]) == ("ok", "warning", "warning")
    assert "sensorium up --state" in found["worker"]["text"]


def test_a_store_that_another_process_has_open_is_told_with_its_process(house: House, sensorium: Run) -> None:
    script = (
        "import asyncio, sys\nfrom pathlib import Path\nfrom streams.store.edge import EdgeStore\n"
        "async def hold():\n    async with EdgeStore(Path('state/store')):\n"
        "        print('open', flush=True); await asyncio.to_thread(sys.stdin.read)\n"
        "asyncio.run(hold())"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", script], cwd=house.folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "open\n"
        result = sensorium("streams")
        assert result.code == 4
        assert f"open in process {holder.pid}" in result.err
        assert len(result.err.strip().splitlines()) == 1
    finally:
        holder.communicate()


def test_inputs_that_are_not_co_partitioned_are_refused(house: House, sensorium: Run) -> None:
    from streams.cli.common import run_async
    from streams.kafka.clients import open_admin
    from streams.settings import load_settings

    broker = house.start("broker --state odd")
    try:
        broker.wait_for("stop with Ctrl-C")
        bootstrap = broker.said.split()[3].rstrip(",")

        async def make_odd() -> None:
            from aiokafka.admin import NewTopic

            admin = await open_admin(load_settings(), bootstrap)
            await admin.create_topics([NewTopic("captions", 3, 1)])
            await admin.close()

        run_async(make_odd())
        missing = sensorium(f"worker --kafka {bootstrap} --store edge:odd-store")
        assert (missing.code, "sensorium topics create" in missing.err) == (4, True)
        odd = sensorium(f"topics create --kafka {bootstrap}")
        assert odd.code == 4
        assert "captions has 3" in odd.err
        assert "same number of partitions" in odd.err
        assert sensorium(f"replay day-0 --kafka {bootstrap}").code == 4
        assert sensorium(f"simulate --seconds 2 --kafka {bootstrap}").code == 4
    finally:
        broker.process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            assert broker.process.wait(30) == 0
