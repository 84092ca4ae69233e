"""The pins, the locks, the wheel, the image's files and tools/bootstrap.py. Nothing here needs a network."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from pydantic import SecretStr
from ruamel.yaml import YAML

from app.config import Settings
from tools import bootstrap

ROOT = Path(__file__).resolve().parent.parent
# One entry of a lock: name, version, perhaps a marker, then hashes.
ENTRY = re.compile(r"^([\w.-]+)==([^\s;]+)(?: ; ([^\\\n]+?))?((?: \\\n    --hash=sha256:[0-9a-f]{64})+)$", re.M)


def entries(lock: str) -> list[tuple[str, str, str, str]]:
    """(name, version, marker, hashes) of each; fails on a line that is none of an entry, hash or comment."""
    text = (ROOT / lock).read_text("utf-8")
    rest = ENTRY.sub("", text)
    assert not [line for line in rest.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    return [match.groups(default="") for match in ENTRY.finditer(text)]  # type: ignore[misc]


def requirements(name: str) -> list[Requirement]:
    lines = (line.strip() for line in (ROOT / name).read_text("utf-8").splitlines())
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def groups() -> dict[str, list[Requirement]]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    return {name: [Requirement(one) for one in group] for name, group in project["dependency-groups"].items()}


def extras() -> dict[str, list[Requirement]]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    return {name: [Requirement(one) for one in some] for name, some in project["optional-dependencies"].items()}


SERVER = requirements("requirements.txt") + requirements("requirements-nodeps.txt")
LOCKS = {
    "requirements.lock": SERVER,
    "requirements-dev.lock": SERVER + groups()["dev"],
    "requirements-bootstrap.lock": groups()["bootstrap"],
}
EXTRA_LOCKS = {f"requirements-{name}.lock": pins for name, pins in extras().items()}
"""What the image installs on top of the server's lock (EXTRAS)."""


@pytest.mark.parametrize("lock", [*LOCKS, *EXTRA_LOCKS])
def test_every_direct_requirement_is_pinned_and_locked_at_its_pin(lock: str) -> None:
    locked = {(name, version) for name, version, _, _ in entries(lock)}
    for requirement in (LOCKS | EXTRA_LOCKS)[lock]:
        (pin,) = requirement.specifier
        assert pin.operator == "==", requirement
        name = canonicalize_name(requirement.name)
        assert [version for other, version in locked if other == name] == [pin.version]


@pytest.mark.parametrize("lock", LOCKS)
def test_no_lock_brings_torch(lock: str) -> None:
    heavy = re.compile(r"^(torch|torchaudio|triton|nvidia-.*|cuda-.*)$")
    assert not [name for name, *_ in entries(lock) if heavy.match(name)]


def test_the_developers_lock_holds_the_servers_lock() -> None:
    assert set(entries("requirements.lock")) <= set(entries("requirements-dev.lock"))


@pytest.mark.parametrize("lock", EXTRA_LOCKS)
def test_an_extra_changes_no_version_of_the_servers_lock(lock: str) -> None:
    server = {name: version for name, version, _, _ in entries("requirements.lock")}
    shared = {name: version for name, version, _, _ in entries(lock) if name in server}
    assert shared == {name: server[name] for name in shared}


def closure(requirements: list[Requirement]) -> set[str]:
    """Them and all that they need, here."""
    wanted: set[tuple[str, frozenset[str]]] = set()
    queue = [one for one in requirements if applies(one)]
    while queue:
        requirement = queue.pop()
        name, extras = canonicalize_name(requirement.name), frozenset(requirement.extras)
        if (name, extras) in wanted:
            continue
        wanted.add((name, extras))
        if name != "silero-vad":  # whose requirements are left out on purpose
            needs = map(Requirement, importlib.metadata.requires(name) or [])
            queue += [need for need in needs if applies(need, extras)]
    return {name for name, _ in wanted}


def locked_here(lock: str) -> set[str]:
    return {
        name
        for name, version, marker, _ in entries(lock)
        if applies(Requirement(f"{name}=={version}" + (f" ; {marker}" if marker else "")))
    }


def test_the_servers_lock_is_complete_and_holds_nothing_else() -> None:
    """Installed with --no-deps, so a package that is missing would be missed only at run time."""
    assert locked_here("requirements.lock") == closure(SERVER)


def test_the_lock_of_googles_extra_is_complete_and_holds_nothing_else() -> None:
    """That of the GPU's is not installed where the tests run."""
    assert locked_here("requirements-google.lock") == closure(extras()["google"])


def applies(requirement: Requirement, extras: frozenset[str] = frozenset()) -> bool:
    if requirement.marker is None:
        return True
    return any(requirement.marker.evaluate({"extra": extra}) for extra in extras | {""})


def test_the_wheel_carries_every_file_of_the_package_and_the_pins(tmp_path: Path) -> None:
    tree = tmp_path / "a tree"
    for name in ("pyproject.toml", "requirements.txt"):
        tree.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tree)
    shutil.copytree(ROOT / "backend/app", tree / "backend/app", ignore=shutil.ignore_patterns("__pycache__"))
    build = "import setuptools.build_meta as backend; backend.build_wheel('.')"
    subprocess.run([sys.executable, "-c", build], cwd=tree, check=True, capture_output=True, timeout=50)
    (wheel,) = tree.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if name.startswith("app/")}
        (metadata,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        about = archive.read(metadata).decode()
    here = {str(path.relative_to(tree / "backend")) for path in (tree / "backend/app").rglob("*") if path.is_file()}
    assert packed == here
    named = {Requirement(line.split(":", 1)[1]) for line in about.splitlines() if line.startswith("Requires-Dist:")}
    assert {one for one in named if "extra" not in str(one.marker)} == set(requirements("requirements.txt"))


@pytest.mark.parametrize(
    "command",
    [
        ["check-jsonschema", "--builtin-schema", "vendor.compose-spec", "docker-compose.yml"],
        ["hadolint", "backend/Dockerfile"],
    ],
    ids=lambda command: command[0],
)
def test_what_only_docker_reads_is_well_formed(command: list[str]) -> None:
    program = Path(sys.executable).parent / command[0]
    done = subprocess.run([program, *command[1:]], cwd=ROOT, capture_output=True, text=True, timeout=50)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_recogniser_is_built_with_what_its_profile_needs_and_knows_no_secret_but_its_own() -> None:
    compose = YAML(typ="safe").load(ROOT / "docker-compose.yml")
    on_cpu, on_gpu = compose["services"]["asr"], compose["services"]["asr-gpu"]
    assert (on_cpu["profiles"], on_gpu["profiles"]) == (["cpu"], ["gpu"])
    assert on_gpu["build"]["args"]["EXTRAS"] in extras()
    assert on_gpu["deploy"]["resources"]["reservations"]["devices"][0]["capabilities"] == ["gpu"]
    assert on_gpu["environment"] == on_cpu["environment"] | {"DEVICE": "${DEVICE:-cuda}"}
    assert on_gpu["networks"]["default"]["aliases"] == ["asr"]
    for service in (on_cpu, on_gpu):
        assert service["command"] == ["malgil", "asr"]
        assert not {"ports", "env_file"} & set(service)
        names = {name.lower() for name in service["environment"]}
        assert names <= set(Settings.model_fields)
        assert {name for name in names if Settings.model_fields[name].annotation is SecretStr} == {"asr_api_key"}


def test_a_container_of_ours_may_do_no_more_than_it_must_and_hears_a_signal() -> None:
    compose = YAML(typ="safe").load(ROOT / "docker-compose.yml")
    for name in ("backend", "asr", "asr-gpu"):
        service = compose["services"][name]
        assert (service["init"], service["read_only"]) == (True, True)
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert service["pids_limit"] == 1024
        assert re.fullmatch(r"\$\{[A-Z_]+_MEMORY:-\d+g\}", service["mem_limit"])
        assert service["stop_grace_period"] == "330s"
        assert any(volume.endswith(":/srv/malgil/data") for volume in service["volumes"])
        assert [mount.partition(":")[0] for mount in service["tmpfs"]] == ["/tmp"]


def test_ci_runs_what_a_person_would_type(tmp_path: Path) -> None:
    make = tmp_path / "make"
    make.write_text('#!/bin/sh\necho "$PWD" "$@"\n')
    make.chmod(0o755)
    done = subprocess.run(
        [ROOT / ".ci/run"],
        cwd="/",
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert done.stdout.split("\n") == [f"{ROOT} test", ""]


# ---- tools/bootstrap.py ---------------------------------------------------------------------------------


# Neither pip nor a uv of the machine can reach an index or fall back on what it fetched before.
OFFLINE = {
    "PIP_CONFIG_FILE": os.devnull,
    "PIP_INDEX_URL": "http://127.0.0.1:9/simple",
    "PIP_RETRIES": "0",
    "PIP_NO_CACHE_DIR": "1",
    "UV_OFFLINE": "1",
    "UV_NO_CACHE": "1",
}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A clone as bootstrap.py sees it, with a ready environment, in a path with a space."""
    tree = tmp_path / "a clone"
    (tree / "tools").mkdir(parents=True)
    for name in ("pyproject.toml", *LOCKS):
        shutil.copy(ROOT / name, tree)
    shutil.copy(ROOT / "tools/bootstrap.py", tree / "tools")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tree / ".venv"], check=True, timeout=50)
    return tree


def note_as_ready(tree: Path, monkeypatch: pytest.MonkeyPatch, lock: str) -> bootstrap.Environment:
    monkeypatch.setattr(bootstrap, "ROOT", tree)
    environment = bootstrap.Environment(tree / ".venv")
    environment.note({lock: environment.digest(lock)})
    return environment


def bootstrapped(tree: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    surroundings = {name: value for name, value in os.environ.items() if name != "PYTHON"} | variables
    return subprocess.run(
        [sys.executable, tree / "tools/bootstrap.py", *arguments],
        env=surroundings,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=50,
    )


def test_a_ready_environment_is_only_entered(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    note_as_ready(tree, monkeypatch, bootstrap.RUN_LOCK)
    show = "import os, sys; print(sys.prefix); print(os.getcwd()); sys.exit(78)"
    done = bootstrapped(tree, "--", "python", "-c", show)
    assert (done.returncode, done.stdout.splitlines(), done.stderr) == (78, [f"{tree}/.venv", str(tree)], "")


def test_an_up_to_date_check_is_cheap(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    note_as_ready(tree, monkeypatch, bootstrap.RUN_LOCK)
    took = []
    for _ in range(5):
        begun = time.perf_counter()
        assert bootstrapped(tree).returncode == 0
        took.append(time.perf_counter() - begun)
    assert min(took) < 0.5  # 0.1 s on an idle machine


def test_a_developers_environment_serves_too_but_not_the_other_way(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    environment = note_as_ready(tree, monkeypatch, bootstrap.DEV_LOCK)
    assert environment.is_ready_for(bootstrap.RUN_LOCK)
    environment = note_as_ready(tree, monkeypatch, bootstrap.RUN_LOCK)
    assert not environment.is_ready_for(bootstrap.DEV_LOCK)


@pytest.mark.parametrize("changed", [bootstrap.RUN_LOCK, bootstrap.TOOLS_LOCK, "pyproject.toml"])
def test_a_change_of_what_is_installed_is_noticed(tree: Path, monkeypatch: pytest.MonkeyPatch, changed: str) -> None:
    environment = note_as_ready(tree, monkeypatch, bootstrap.RUN_LOCK)
    assert environment.is_ready_for(bootstrap.RUN_LOCK)
    with (tree / changed).open("a") as file:
        file.write("# a change\n")
    assert not environment.is_ready_for(bootstrap.RUN_LOCK)


def test_a_moved_clone_and_a_python_that_has_gone_are_noticed(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    note_as_ready(tree, monkeypatch, bootstrap.RUN_LOCK)
    moved = tree.rename(tree.parent / "elsewhere")
    monkeypatch.setattr(bootstrap, "ROOT", moved)
    environment = bootstrap.Environment(moved / ".venv")
    assert environment.version == sys.version_info[:2]
    assert not environment.is_ready_for(bootstrap.RUN_LOCK)
    for name in (moved / ".venv/bin").glob("python*"):
        name.unlink()
    assert environment.version is None


@pytest.mark.parametrize("note", ["", "{", '{"unfinished": ""}'])
def test_a_run_that_was_cut_short_is_never_taken_for_ready(
    tree: Path, monkeypatch: pytest.MonkeyPatch, note: str
) -> None:
    environment = note_as_ready(tree, monkeypatch, bootstrap.RUN_LOCK)
    (tree / ".venv/malgil.json").write_text(note)
    assert bootstrap.UNFINISHED in environment.holds
    assert not environment.is_ready_for(bootstrap.RUN_LOCK)


def test_without_an_index_it_says_what_to_do_and_the_next_run_begins_anew(tree: Path) -> None:
    left_over = tree / ".venv/left over"
    left_over.touch()
    for _ in range(2):
        done = bootstrapped(tree, "--", "true", **OFFLINE)
        assert done.returncode == bootstrap.EXIT_FAILED, done.stderr
        assert "name a mirror in PIP_INDEX_URL" in done.stderr
        assert json.loads((tree / ".venv/malgil.json").read_text()) == {bootstrap.UNFINISHED: ""}
    assert not left_over.exists()


def test_a_python_that_a_person_names_has_an_environment_of_its_own(tree: Path) -> None:
    done = bootstrapped(tree, "--", "true", PYTHON=sys.executable, **OFFLINE)
    assert done.returncode == bootstrap.EXIT_FAILED
    assert (tree / ".venv-{}.{}".format(*sys.version_info)).is_dir()


def test_an_unfit_python_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap, "OLDEST", (3, 98))
    monkeypatch.setattr(bootstrap, "NEWEST", (3, 99))
    with pytest.raises(bootstrap.BootstrapError, match=r"Malgil needs Python 3\.98 to 3\.99") as unfit:
        bootstrap.use_a_fit_python("python3.0")
    assert unfit.value.status == bootstrap.EXIT_UNAVAILABLE
    with pytest.raises(bootstrap.BootstrapError, match="no other on the PATH"):
        bootstrap.use_a_fit_python("")


def test_a_command_that_is_not_there_is_named(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    note_as_ready(tree, monkeypatch, bootstrap.RUN_LOCK)
    done = bootstrapped(tree, "--", "no-such-command")
    assert done.returncode == 127
    assert "'no-such-command'" in done.stderr
