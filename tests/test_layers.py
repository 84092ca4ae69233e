"""Which part of the code may know which, and what only one place may do. Read from the source, so that an import
under TYPE_CHECKING or inside a function counts like any other."""

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

BACKEND = Path(__file__).parent.parent / "backend"

MAY_IMPORT = {
    # the bottom: knows nothing of ours
    "errors": "",
    "clock": "",
    "log": "",
    "metrics": "",
    "background": "",
    # sound and its recognition: know nothing of calls
    "audio": "errors audio",
    "asr": "errors audio asr",
    # a call's vocabulary and rules
    "services.ai_call.types": "audio",
    "services.ai_call.ports": "audio .types",
    "services.ai_call.language": "",
    "services.ai_call.sentences": "",
    "services.ai_call.dialogue": "errors",
    "services.ai_call.completeness": "",
    "services.ai_call.turns": "audio .types .completeness",
    "services.ai_call.breaker": "",
    "services.ai_call.backlog": "audio",
    "services.ai_call.in_use": "",
    "services.ai_call.prompt": ".types .language",
    # a call's parts, each over protocols only
    "services.ai_call.registry": ".types",
    "services.ai_call.recorder": "errors .types .ports",
    "services.ai_call.phrases": "errors audio .types .ports .dialogue",
    "services.ai_call.succession": ".breaker .ports",
    "services.ai_call.preflight": "errors audio .ports",
    "services.ai_call.recognition": "errors .ports .in_use .preflight .succession",
    "services.ai_call.listening": "errors audio .types .ports .completeness .backlog .succession",
    "services.ai_call.speaking": "errors .types .ports .sentences .phrases",
    "services.ai_call.session": (
        "clock metrics audio .types .ports .language .dialogue .turns .prompt .recorder .listening .speaking"
    ),
    "services.ai_call.switchboard": "metrics .types .session",
    "services.ai_call.readiness": "errors",
    # the vendors: never each other, never a call
    "services.ai_call.local_stt": "errors audio asr .types .ports",
    "services.ai_call.remote_client": "errors",
    "services.ai_call.remote_stt": "errors audio .remote_client",
    "services.ai_call.rtzr_stt_service": "errors",
    "services.ai_call.rtzr_stt_realtime": "errors audio .rtzr_stt_service",
    "services.ai_call.google_client": "errors",
    "services.ai_call.google_stt": "errors audio .google_client",
    "services.ai_call.stt_service": "errors .google_client",
    "services.ai_call.audio_processor": "errors audio .stt_service",
    "services.ai_call.ollama_llm": "errors .types",
    "services.ai_call.scripted_llm": ".types .language .dialogue",
    "services.ai_call.elevenlabs_tts": "errors audio .language",
    "services.ai_call.espeak_worker": "",
    "services.ai_call.espeak_tts": "errors audio .language .sentences .espeak_worker",
    # the outside: telephone and disk; neither knows a session
    "telephony": "errors audio .types telephony",
    "db": "errors .types .ports db",
    "migrations": "db",
    # a phone in software: of the server it knows how Twilio signs, and a voice
    "simulator": "errors audio telephony.signature .espeak_tts simulator",
    # the top
    "config": "errors",
    "providers": (
        "config errors clock hearing asr .ports .in_use .recognition .dialogue .local_stt .remote_stt .rtzr_stt_service"
        " .rtzr_stt_realtime .google_client .google_stt .stt_service .audio_processor"
        " .ollama_llm .scripted_llm .elevenlabs_tts .espeak_tts"
    ),
    "wiring": "config errors clock hearing metrics background audio telephony db providers services.ai_call",
    "api": "errors clock metrics .types .recognition db.call_store telephony wiring api",
    "start_table": "wiring",
    "main": "errors api wiring",
    "hearing": "config audio asr",
    "serving": "errors",
    "server": "config main serving wiring",
    "asr_service": "config background clock hearing audio asr serving",
    "cli": "config errors log server asr_service asr.models start_table wiring simulator.command",
    "__main__": "cli",
}
"""By module or package: the modules and packages it may import. `.name` is services.ai_call.name."""

PURE = (
    *("services.ai_call.types", "services.ai_call.turns", "services.ai_call.sentences", "services.ai_call.prompt"),
    *("services.ai_call.completeness", "services.ai_call.breaker", "services.ai_call.backlog"),
    *(
        "services.ai_call.succession",
        "asr.gates",
        "asr.windows",
        "asr.inventions",
        "asr.numerals",
        "asr.pieces",
        "audio.timeline",
    ),
    *("services.ai_call.language", "audio.types", "audio.endpoint", "audio.chunker", "audio.g711"),
    *("telephony.media_stream", "telephony.twiml", "telephony.signature", "telephony.stream_token"),
    *("simulator.playout", "simulator.wire"),
)
IMPURE = {"asyncio", "threading", "socket", "os", "time", "random", "httpx", "sqlalchemy", "starlette", "fastapi"}

KNOWS_CONFIG = {"cli", "server", "asr_service", "hearing", "wiring", "providers"}

SENDS = {"telephony.twilio_line"}
CLOSES = {
    "telephony.twilio_line",
    "api.twilio",  # before there is a line
    "simulator.line",  # the other end
}
TASK_OWNERS = {"group", "self._group", "self._calls"}
READS_ENVIRONMENT = {
    "config",
    "asr.worker_link",  # what its child inherits
    "migrations.env",  # Alembic's own command line
    "services.ai_call.espeak_tts",  # what its worker inherits
    "simulator.command",  # a caller's credentials, on another machine
}
CATCHES_ALL = {
    "asr.engine": "_decode",  # a thread: the error goes to whoever waits
    "asr.hub_download": "main",  # a process of its own
    "asr.recogniser": "load warm_up",  # CTranslate2 raises anything
    "asr.worker": "_one_life",  # a thread: without it no process would ever be started again
    "asr.worker_child": "load decode",  # a process of its own
    "background": "_guarded",
    "services.ai_call.google_stt": "_open_leg",  # and raises it again
    "services.ai_call.listening": "_one_stream",  # a recogniser's bug leaves the call to its successor
    "services.ai_call.recognition": "_is_well _probe",
    "services.ai_call.espeak_tts": "start",  # and raises it again
    "services.ai_call.readiness": "_check",
    "services.ai_call.session": "run _guarded",
    "services.ai_call.speaking": "reply",
}


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(BACKEND / "app").with_suffix("").parts).removesuffix(".__init__")


SOURCES = {module_of(path): ast.parse(path.read_text(encoding="utf-8")) for path in (BACKEND / "app").rglob("*.py")}


def imports(module: str) -> set[str]:
    """As written, absolute; `app.` is cut off from ours, so `app.x` is `x` and a library `httpx` is `!httpx`."""
    found: set[str] = set()
    for node in ast.walk(SOURCES[module]):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            ours = {name for name in names if name.removeprefix("app.") in SOURCES}
            found |= ours or {node.module or ""}
    return {name.removeprefix("app.") if name.startswith("app.") else f"!{name.split('.')[0]}" for name in found}


def inside(module: str, part: str) -> bool:
    return module == part or module.startswith(f"{part}.")


def rule_of(module: str) -> str:
    return max((part for part in MAY_IMPORT if inside(module, part)), key=len, default="")


MODULES = sorted(module for module, source in SOURCES.items() if source.body and module != "__init__")


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_down(module: str) -> None:
    rule = rule_of(module)
    assert rule, "this module has no place in MAY_IMPORT"
    allowed = [f"services.ai_call{part}" if part.startswith(".") else part for part in MAY_IMPORT[rule].split()]
    ours = {name for name in imports(module) if not name.startswith("!")}
    assert {name for name in ours if not any(inside(name, part) for part in allowed)} == set()


def test_no_module_imports_itself_by_a_detour() -> None:
    graph = {module: {name for name in imports(module) if name in SOURCES} for module in MODULES}
    TopologicalSorter(graph).prepare()


def test_no_rule_is_left_over() -> None:
    assert {rule_of(module) for module in MODULES} == set(MAY_IMPORT)
    assert {module for module in MODULES if "config" in imports(module)} == KNOWS_CONFIG


@pytest.mark.parametrize("module", PURE)
def test_what_is_pure_touches_nothing(module: str) -> None:
    assert imports(module) & {f"!{name}" for name in IMPURE} == set()


# ---------------------------------------------------------------- what only one place may do


def nodes(module: str) -> Iterator[tuple[str, ast.AST]]:
    """Every node, with the name of the function around it."""

    def walk(node: ast.AST, function: str) -> Iterator[tuple[str, ast.AST]]:
        for child in ast.iter_child_nodes(node):
            name = child.name if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef) else function
            yield name, child
            yield from walk(child, name)

    return walk(SOURCES[module], "")


def calls(module: str, *methods: str) -> set[str]:
    """The objects on which one of these methods is called."""
    return {
        ast.unparse(node.func.value)
        for _, node in nodes(module)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in methods
    }


def test_a_socket_has_one_owner() -> None:
    assert {module for module in MODULES if calls(module, "send_text", "send_bytes", "send_json")} == SENDS
    closes = {module for module in MODULES if any("socket" in what for what in calls(module, "close"))}
    assert closes == CLOSES


def test_every_task_has_a_parent() -> None:
    starters = {what for module in MODULES for what in calls(module, "create_task", "ensure_future")}
    assert starters == TASK_OWNERS


def test_the_environment_is_read_in_one_place() -> None:
    readers = {
        module
        for module in MODULES
        for _, node in nodes(module)
        if isinstance(node, ast.Attribute | ast.Name) and ast.unparse(node) in ("os.environ", "os.getenv", "environ")
    }
    assert readers == READS_ENVIRONMENT


def test_only_named_edges_catch_everything() -> None:
    broad: dict[str, set[str]] = {}
    for module in MODULES:
        for function, node in nodes(module):
            if not isinstance(node, ast.ExceptHandler):
                continue
            caught = set(ast.unparse(node.type).strip("()").split(", ")) if node.type else {"BaseException"}
            if caught & {"Exception", "BaseException"}:
                broad.setdefault(module, set()).add(function)
            raises_again = isinstance(last := node.body[-1], ast.Raise) and last.exc is None
            assert raises_again or "BaseException" not in caught, f"{module}.{function} swallows a cancellation"
    assert broad == {module: set(functions.split()) for module, functions in CATCHES_ALL.items()}
