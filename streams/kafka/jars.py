"""The jars of Apache Kafka: fetched once with jgo, checked against pinned hashes every time.

`streams/kafka/data/jars.sha256` names every jar (`sha256  bytes  group:artifact:version`). Nothing outside that list
gets on the class path, and no jar whose content differs. The network is needed by `fetch()` alone.

New pins after a change of `ROOTS`: `python -m streams.kafka.jars > streams/kafka/data/jars.sha256`.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from streams.errors import DependencyError

KAFKA_VERSION = "4.3.1"
# kafka-clients by name: without it the resolver picks an older one, which does not start beside this broker.
ROOTS = (
    f"org.apache.kafka:kafka_2.13:{KAFKA_VERSION}",
    f"org.apache.kafka:kafka-clients:{KAFKA_VERSION}",
    "org.apache.logging.log4j:log4j-slf4j-impl:2.25.1",
)
MEND = "sensorium broker --fetch-only"
_PARALLEL = 4


class JarError(DependencyError):
    """Jars that are missing, differ from their pins or cannot be fetched; one line, with the command that mends it."""


@dataclass(frozen=True)
class Jar:
    """One pinned jar."""

    sha256: str
    size: int  # bytes
    coordinate: str  # group:artifact:version

    @property
    def file_name(self) -> str:
        _, artifact, version = self.coordinate.split(":")
        return f"{artifact}-{version}.jar"


def data_file(name: str) -> Path:
    """A file that ships in this package's `data` folder, by its path: the JVM reads some of them itself.

    The same in a checkout, an editable installation and a wheel. Raises `JarError` where it is missing.
    """
    path = Path(str(resources.files("streams.kafka"))) / "data" / name
    if not path.is_file():
        raise JarError(f"{path} is missing, so this installation is incomplete; install sensorium again")
    return path


def read_pins(path: Path | None = None) -> list[Jar]:
    """Pinned jars in the order of the class path. Raises `JarError` with file:line for a line that is none."""
    path = path or data_file("jars.sha256")
    jars = []
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        parts = line.split()
        if len(parts) != 3 or len(parts[0]) != 64 or not parts[1].isdigit() or parts[2].count(":") != 2:
            raise JarError(f"{path}:{number}: not 'sha256  bytes  coordinate'; mend with: git checkout {path}")
        jars.append(Jar(parts[0], int(parts[1]), parts[2]))
    return jars


def cache_folder() -> Path:
    """Where the jars are kept: `SENSORIUM_CACHE`, else the user's cache folder."""
    root = os.environ.get("SENSORIUM_CACHE")
    if root:
        return Path(root) / f"kafka-{KAFKA_VERSION}"
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "sensorium" / f"kafka-{KAFKA_VERSION}"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def wrong_jars(folder: Path, pins: list[Jar]) -> tuple[list[Jar], list[Jar]]:
    """(missing, different) jars of a folder. All are hashed: 44 MB cost about a tenth of a second per start, and a
    time stamp would not notice a file that was exchanged with care."""
    missing, different = [], []
    for jar in pins:
        path = folder / jar.file_name
        if not path.is_file():
            missing.append(jar)
        elif path.stat().st_size != jar.size or _sha256(path) != jar.sha256:
            different.append(jar)
    return missing, different


def class_path(folder: Path | None = None, pins: list[Jar] | None = None) -> str:
    """The checked class path. Raises `JarError` if any jar is missing or differs from its pin; never fetches."""
    folder = folder or cache_folder()
    pins = pins if pins is not None else read_pins()
    missing, different = wrong_jars(folder, pins)
    if different:
        raise JarError(f"{folder / different[0].file_name} differs from its pinned sha256; mend with: {MEND}")
    if missing:
        raise JarError(f"{len(missing)} Kafka jars are missing in {folder}; fetch them with: {MEND}")
    return os.pathsep.join(str(folder / jar.file_name) for jar in pins)


def fetch(folder: Path | None = None, pins: list[Jar] | None = None, console: Console | None = None) -> Path:
    """Makes the cache folder complete and right: fetches what is missing or differs, and checks every jar.

    Quick and silent when nothing is to be done. `SENSORIUM_MAVEN` names another Maven repository than Maven Central;
    a jar that lies in the local Maven repository is taken from there. Raises `JarError`.
    """
    folder = folder or cache_folder()
    pins = pins if pins is not None else read_pins()
    missing, different = wrong_jars(folder, pins)
    if not missing and not different:
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder / ".fetch-lock"):
        missing, different = wrong_jars(folder, pins)  # another process may have been quicker
        wanted = missing + different
        if wanted:
            _fetch(wanted, folder, console or Console(stderr=True))
    return folder


def _fetch(wanted: list[Jar], folder: Path, console: Console) -> None:
    progress = Progress(
        TextColumn("Apache Kafka " + KAFKA_VERSION),
        BarColumn(),
        DownloadColumn(),
        TimeRemainingColumn(),
        console=console,
    )
    with (
        tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder) as scratch,
        progress,
        ThreadPoolExecutor(_PARALLEL) as pool,
    ):
        task = progress.add_task("fetch", total=sum(jar.size for jar in wanted))
        jobs = {
            pool.submit(_fetch_one, jar, folder, Path(scratch), lambda n: progress.advance(task, n)): jar
            for jar in wanted
        }
        try:
            for job in as_completed(jobs):
                job.result()
        except JarError:
            pool.shutdown(cancel_futures=True)
            raise


def _fetch_one(jar: Jar, folder: Path, scratch: Path, advance: Callable[[int], None]) -> None:
    # jgo brings requests along, which takes a while to import and is needed here only.
    from jgo.maven import MavenContext
    from jgo.maven._resolver import PythonResolver

    got = 0

    @contextmanager
    def report(_name: str, _size: int) -> Iterator[Callable[[int], None]]:
        def update(count: int) -> None:
            nonlocal got
            got += count
            advance(count)

        yield update

    mirror = os.environ.get("SENSORIUM_MAVEN")
    context = MavenContext(
        resolver=PythonResolver(progress_callback=report),
        repo_cache=scratch,
        local_repos=[Path(os.environ.get("M2_REPO") or Path.home() / ".m2" / "repository")],
        remote_repos={"mirror": mirror.rstrip("/")} if mirror else None,
        timeout=60,
    )
    group, artifact, version = jar.coordinate.split(":")
    try:
        path = context.project(group, artifact).at_version(version).artifact().resolve()
    except Exception as error:  # requests, jgo and the file system each have their own tree
        raise JarError(f"cannot fetch {jar.coordinate}: {error}; try again with: {MEND}") from None
    if _sha256(path) != jar.sha256:
        raise JarError(f"{jar.coordinate} as fetched differs from its pinned sha256; try again later with: {MEND}")
    advance(jar.size - got)  # a jar from the local repository reports nothing
    partial = scratch / f"{jar.file_name}.checked"
    shutil.copyfile(path, partial)
    partial.replace(folder / jar.file_name)  # whole or not at all


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def resolve_pins() -> list[Jar]:
    """Resolves `ROOTS` with everything that they need and hashes it: what the pins file should say."""
    from jgo.maven import MavenContext
    from jgo.maven._core import Dependency
    from jgo.maven._resolver import PythonResolver

    with tempfile.TemporaryDirectory() as scratch:
        context: Any = MavenContext(resolver=PythonResolver(), repo_cache=Path(scratch), timeout=60)
        roots = []
        for coordinate in ROOTS:
            group, artifact, version = coordinate.split(":")
            roots.append(Dependency(context.project(group, artifact).at_version(version).artifact()))
        named, needed = context.resolver.resolve(roots)
        jars = []
        for dependency in named + needed:
            path = dependency.artifact.resolve()
            coordinate = f"{dependency.groupId}:{dependency.artifactId}:{dependency.version}"
            jars.append(Jar(_sha256(path), path.stat().st_size, coordinate))
    return sorted(jars, key=lambda jar: jar.coordinate)


if __name__ == "__main__":
    print("# The jars of Apache Kafka: sha256  bytes  group:artifact:version")
    print("# made with: python -m streams.kafka.jars > streams/kafka/data/jars.sha256")
    for pinned in resolve_pins():
        print(f"{pinned.sha256}  {pinned.size}  {pinned.coordinate}")
    sys.stdout.flush()
