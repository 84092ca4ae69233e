"""Makes the virtual environment, keeps it up to date, runs a command in it. Standard library only.

    python3 tools/bootstrap.py [--dev] [-- command argument ...]

The environment is `.venv`. Where a person names a Python (`PYTHON=python3.13 make test`) it is `.venv-3.13`
or the like, so that trying another Python never costs the first. Packages come from the hashed locks, with
uv where it works and pip where it does not; the project itself is installed in place. What was installed is
noted in the environment, so the next run costs 0.1 s. A run that was cut short is begun anew; an environment
that somebody made by hand is completed.

Exit status: that of the command; 1 nothing could be installed; 69 no fit Python, or one without pip.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parent.parent
OLDEST, NEWEST = (3, 11), (3, 13)
RUN_LOCK, DEV_LOCK, TOOLS_LOCK = "requirements.lock", "requirements-dev.lock", "requirements-bootstrap.lock"
FROM_LOCK = ("--no-deps", "--require-hashes", "--only-binary", ":all:", "-r")
# `user = true` in a pip.conf is an error inside an environment.
PIP_QUIRKS = {"PIP_USER": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
UNFINISHED = "unfinished"
EXIT_FAILED, EXIT_UNAVAILABLE = 1, 69


class BootstrapError(Exception):
    """Ends the run; the text says what a person can do about it."""

    def __init__(self, text: str, status: int = EXIT_FAILED) -> None:
        super().__init__(text)
        self.status = status


class Environment:
    """One virtual environment, and the note in it about what it holds."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bin = folder / "bin"
        self.python = str(self.bin / "python")
        self._note = folder / "malgil.json"

    @property
    def version(self) -> tuple[int, ...] | None:
        """Of the Python it was made with; None where there is no environment, or that Python has gone."""
        if not os.path.exists(self.python):
            return None
        with contextlib.suppress(FileNotFoundError):
            for line in (self.folder / "pyvenv.cfg").read_text("utf-8").splitlines():
                key, _, value = line.partition("=")
                if key.strip() in ("version", "version_info"):
                    return tuple(int(part) for part in value.strip().split(".")[:2])
        return None

    @property
    def holds(self) -> dict[str, str]:
        """Lock -> digest of what was installed from it. Empty where no run of ours has touched it."""
        try:
            return dict(json.loads(self._note.read_text("utf-8")))
        except FileNotFoundError:
            return {}
        except ValueError:  # cut short while it was written
            return {UNFINISHED: ""}

    def note(self, holds: Mapping[str, str]) -> None:
        self._note.write_text(json.dumps(holds), "utf-8")

    def digest(self, lock: str) -> str:
        """Changes with all that asks for a new installation; also with the folder, which scripts name."""
        digest = hashlib.sha256(f"{self.folder}\n{self.version}\n".encode())
        for name in (lock, TOOLS_LOCK, "pyproject.toml"):
            digest.update((ROOT / name).read_bytes())
        return digest.hexdigest()

    def is_ready_for(self, lock: str) -> bool:
        """The developers' lock holds all that the server's does, so the server runs from either."""
        if self.version is None:
            return False
        holds = self.holds
        return any(holds.get(name) == self.digest(name) for name in (lock, DEV_LOCK))


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description="Prepares the virtual environment, runs a command in it.")
    parser.add_argument("--dev", action="store_true", help="with what tests and lint need")
    parser.add_argument("command", nargs="*", help="after --")
    options = parser.parse_args(arguments)
    # make hands this variable on only where a person set it: a default of its own it does not export.
    asked_for = os.environ.get("PYTHON", "")
    lock = DEV_LOCK if options.dev else RUN_LOCK
    environment = Environment(ROOT / (f".venv-{dotted(sys.version_info[:2])}" if asked_for else ".venv"))
    if not environment.is_ready_for(lock):
        if environment.version is None:
            use_a_fit_python(asked_for)
        with only_one():
            if not environment.is_ready_for(lock):
                build(environment, lock)
    if options.command:
        become(environment, options.command)
    return 0


def use_a_fit_python(asked_for: str) -> None:
    """Goes on where this Python is fit; else starts anew with one that is."""
    if OLDEST <= sys.version_info[:2] <= NEWEST:
        return
    found = f"Python {dotted(sys.version_info[:2])} ({sys.executable})"
    wanted = f"Python {dotted(OLDEST)} to {dotted(NEWEST)}"
    if asked_for:
        raise BootstrapError(f"PYTHON={asked_for} is {found}; Malgil needs {wanted}.", EXIT_UNAVAILABLE)
    for minor in range(NEWEST[1], OLDEST[1] - 1, -1):
        candidate = shutil.which(f"python3.{minor}")
        # Tried before it is trusted: a version manager's shim exists also where its Python does not.
        if candidate and run([candidate, "-c", ""], quiet=True):
            os.execv(candidate, [candidate, *sys.argv])
    raise BootstrapError(
        f"Malgil needs {wanted}; here is {found}, and no other on the PATH.\n"
        "Install one, or say where it is: PYTHON=/path/to/python3.12 make run",
        EXIT_UNAVAILABLE,
    )


@contextlib.contextmanager
def only_one() -> Iterator[None]:
    """`make run` in one shell and `make test` in another must not both build: the second waits."""
    with open(__file__, "rb") as own:
        try:
            fcntl.flock(own, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("Another run is preparing the environment; waiting for it.")
            fcntl.flock(own, fcntl.LOCK_EX)
        yield


def build(environment: Environment, lock: str) -> None:
    holds = environment.holds
    if UNFINISHED in holds or environment.version is None:
        shutil.rmtree(environment.folder, ignore_errors=True)
        holds = {}
        # Without pip: the locked one follows, and not every Python can bring its own.
        if not run([sys.executable, "-m", "venv", "--without-pip", str(environment.folder)]):
            raise BootstrapError(f"{sys.executable} -m venv failed; see above.", EXIT_UNAVAILABLE)
    version = environment.version
    if version is None or not OLDEST <= version <= NEWEST:
        raise BootstrapError(f"{environment.folder} is of an unfit Python; remove it.", EXIT_UNAVAILABLE)
    say(f"Installing {lock} into {environment.folder} (Python {dotted(version)}) ...")
    environment.note({UNFINISHED: ""})
    install_tools(environment)
    index = index_of_pip(environment)
    install(environment, index, [*FROM_LOCK, lock])
    install(environment, index, ["--no-deps", "--no-build-isolation", "--editable", str(ROOT)])
    environment.note({**holds, lock: environment.digest(lock)})


def install_tools(environment: Environment) -> None:
    """The locked pip, setuptools and uv, with whatever installer the machine has."""
    uv = shutil.which("uv")
    from_lock = ["--quiet", *FROM_LOCK, TOOLS_LOCK]
    if uv and run([uv, "pip", "install", "--python", environment.python, *from_lock], quiet=True):
        return
    if not run([*find_pip(environment), "install", *from_lock], PIP_QUIRKS):
        raise no_packages()


def find_pip(environment: Environment) -> list[str]:
    """The environment's pip, this Python's, the one that Python carries, or Debian's package of that."""
    own = [environment.python, "-m", "pip"]
    neighbour = [sys.executable, "-m", "pip", "--python", environment.python]  # since pip 22.3
    for pip in (own, neighbour):
        if run([*pip, "--version"], quiet=True):
            return pip
    ensurepip = [environment.python, "-m", "ensurepip"]
    if run(ensurepip, quiet=True):
        return own
    package = f"python{dotted(sys.version_info[:2])}-venv"
    apt = shutil.which("apt-get")
    if apt and os.geteuid() == 0:
        say(f"This Python carries no pip; installing {package} ...")
        run([apt, "update", "-qq"])
        silent = {"DEBIAN_FRONTEND": "noninteractive"}
        run([apt, "install", "-qq", "-y", "--no-install-recommends", package], silent)
        if run(ensurepip, quiet=True):
            return own
    raise BootstrapError(
        f"{sys.executable} carries no pip. On Debian and Ubuntu: sudo apt-get install {package}\n"
        "Elsewhere install uv, or pip for this Python. Then run the same command again.",
        EXIT_UNAVAILABLE,
    )


def index_of_pip(environment: Environment) -> dict[str, str]:
    """uv reads nothing of pip's configuration: where only pip has been given an index, uv is told of it."""
    if "UV_DEFAULT_INDEX" in os.environ or "UV_INDEX_URL" in os.environ:
        return {}
    listing = subprocess.run(
        [environment.python, "-m", "pip", "config", "list"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    ).stdout
    settings = [line.partition("=") for line in listing.splitlines()]
    urls = [ast.literal_eval(value) for key, _, value in settings if key.endswith(".index-url")]
    return {"UV_DEFAULT_INDEX": urls[-1]} if urls else {}


def install(environment: Environment, index: Mapping[str, str], what: Sequence[str]) -> None:
    """Bytecode is compiled now: where PYTHONDONTWRITEBYTECODE is set, every start would pay for it."""
    quiet = [] if sys.stderr.isatty() else ["--quiet"]
    uv = [str(environment.bin / "uv"), "pip", "install", "--python", environment.python, "--compile-bytecode"]
    if run([*uv, *quiet, *what], index):
        return
    say("uv could not install that (see above); trying pip.")
    if not run([environment.python, "-m", "pip", "install", *quiet, *what], PIP_QUIRKS):
        raise no_packages()


def no_packages() -> BootstrapError:
    return BootstrapError(
        "The packages could not be installed; pip's own words stand above. A package index is needed once:\n"
        "check the network, or name a mirror in PIP_INDEX_URL, then run the same command again."
    )


def run(command: Sequence[str], variables: Mapping[str, str] | None = None, quiet: bool = False) -> bool:
    """True on success. The command cannot read from us, so nothing waits for an answer that nobody gives."""
    output = subprocess.DEVNULL if quiet else sys.stderr
    surroundings = {**os.environ, **(variables or {})}
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=surroundings, stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )
    except OSError:
        return False
    return done.returncode == 0


def become(environment: Environment, command: list[str]) -> NoReturn:
    """Replaces this process, so that signals and the exit status are the command's own."""
    path = os.pathsep.join([str(environment.bin), os.environ.get("PATH", os.defpath)])
    os.chdir(ROOT)
    try:
        os.execvpe(command[0], command, {**os.environ, "VIRTUAL_ENV": str(environment.folder), "PATH": path})
    except FileNotFoundError:
        raise BootstrapError(f"There is no command {command[0]!r} in {environment.folder}.", 127) from None


def dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except BootstrapError as error:
        say(str(error))
        sys.exit(error.status)
    except KeyboardInterrupt:
        say("Stopped; the next run begins anew.")
        sys.exit(130)
