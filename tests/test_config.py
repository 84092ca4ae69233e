"""Settings: what is refused, in which words, and that env.example is the same list."""

import re
from pathlib import Path

import pytest

from app.config import PROFILES, Settings, load_asr_settings, load_settings
from app.errors import ConfigError

ROOT = Path(__file__).resolve().parents[1]
SECRET = "0123456789abcdef0123456789abcdef"
PRODUCTION = {
    "PUBLIC_BASE_URL": "https://bot.test",
    "TWILIO_ACCOUNT_SID": "AC" + "1" * 32,
    "TWILIO_AUTH_TOKEN": SECRET,
    "MEDIA_TOKEN_SECRET": SECRET,
    "ADMIN_API_KEY": SECRET,
    "TTS_PROVIDER": "espeak",
}


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in Settings.model_fields:
        for variable in (name.upper(), f"{name.upper()}_FILE", "MODEL"):
            monkeypatch.delenv(variable, raising=False)
    monkeypatch.chdir(tmp_path)


def example() -> dict[str, str]:
    lines = (ROOT / "env.example").read_text(encoding="utf-8").splitlines()
    return dict(line.split("=", 1) for line in lines if re.match(r"[A-Z]", line))


def test_env_example_holds_every_setting_with_its_default() -> None:
    fields = {name.upper(): field for name, field in Settings.model_fields.items()}
    assert list(example()) == list(fields)
    defaults = load_settings(None, app_env="development").model_dump()
    text = (ROOT / "env.example").read_text(encoding="utf-8")
    of_profiles = {name.upper() for profile in PROFILES.values() for name in profile}
    for name, value in example().items():
        if name == "APP_ENV":
            assert value == fields[name].default
        elif value:
            assert value.lower() == str(defaults[name.lower()]).lower(), name
        else:
            default = fields[name].get_default()
            in_words = re.search(rf"\b{re.escape(str(default))}\b.*\n{name}=", text)
            assert not default or not str(default) or (name in of_profiles and in_words), name


def test_a_profile_is_not_overruled_by_a_copy_of_env_example(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text(
        (ROOT / "env.example").read_text(encoding="utf-8").replace("PROFILE=\n", "PROFILE=latency\n"), encoding="utf-8"
    )
    settings = load_settings(app_env="development")
    assert (settings.model_name, settings.beam_size, settings.num_predict) == ("small", 1, 40)


def test_every_setting_in_env_example_is_explained() -> None:
    explained = False
    for line in (ROOT / "env.example").read_text(encoding="utf-8").splitlines():
        if re.match(r"[A-Z]", line):
            assert explained, line
        elif line.startswith("#"):
            explained = True
        else:
            explained = False


def test_env_example_is_a_usable_env_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APP_ENV", "development")
    from_file = load_settings(str(ROOT / "env.example"))
    assert from_file == load_settings(None)


@pytest.mark.parametrize("missing", [name for name in PRODUCTION if name != "TTS_PROVIDER"])
def test_production_without_a_required_setting_names_it(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    for name, value in PRODUCTION.items():
        if name != missing:
            monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=rf"^{missing}: not set"):
        load_settings(None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"TTS_PROVIDER": ""}, "TTS_PROVIDER: not set"),
        ({"TTS_PROVIDER": "elevenlabs"}, "ELEVENLABS_API_KEY: not set"),
        ({"TTS_PROVIDER": "elevenlabs", "ELEVENLABS_API_KEY": "k"}, "ELEVENLABS_VOICE_ID: not set"),
        ({"ELEVENLABS_API_KEY": "changeme", "TTS_PROVIDER": ""}, "ELEVENLABS_API_KEY: still a placeholder"),
        ({"ADMIN_API_KEY": "short"}, "ADMIN_API_KEY: too short"),
        ({"MEDIA_TOKEN_SECRET": "changeme" * 8}, "MEDIA_TOKEN_SECRET: still a placeholder"),
        ({"PUBLIC_BASE_URL": "http://bot.test"}, "PUBLIC_BASE_URL: must begin with https"),
        ({"PUBLIC_BASE_URL": "https://bot.test?x=1"}, "PUBLIC_BASE_URL: must be an http"),
        ({"LLM_URL": "localhost:11434"}, "LLM_URL: must be an http"),
        ({"LLM_URL": f"http://user:{SECRET}@localhost"}, "LLM_URL: a login inside the URL"),
        ({"PORT": "70000"}, "PORT: "),
        ({"STT_PROVIDER": "nobody"}, "STT_PROVIDER: "),
        ({"BARGE_IN": "never"}, "BARGE_IN: "),
        ({"TEMPERATURE": "hot"}, "TEMPERATURE: "),
        ({"ADMIN_API_KEY_FILE": "/nowhere/at/all"}, "ADMIN_API_KEY_FILE: "),
    ],
)
def test_a_wrong_setting_is_refused_by_name_and_its_value_stays_private(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, str], message: str
) -> None:
    for name, value in (PRODUCTION | changes).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError) as refused:
        load_settings(None)
    assert str(refused.value).startswith(message)
    assert "\n" not in str(refused.value)
    assert SECRET not in str(refused.value)


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1", "::", "bot.test"])
def test_development_binds_to_loopback_only(host: str) -> None:
    with pytest.raises(ConfigError, match=r"^HOST: "):
        load_settings(None, app_env="development", host=host)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_development_needs_nothing_at_all(host: str) -> None:
    settings = load_settings(None, app_env="development", host=host)
    assert settings.voice == "espeak"
    assert settings.console_logs


def test_an_env_file_of_garbage_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / ".env").write_bytes(b"\xff\xfe\x00garbage")
    with pytest.raises(ConfigError, match=r"^\.env: not a text file"):
        load_settings()


def test_a_real_key_may_hold_any_word() -> None:
    key = "sk_mysecretexample"
    assert load_settings(None, app_env="development", elevenlabs_api_key=key, elevenlabs_voice_id="v")


def test_a_secret_may_come_from_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "admin"
    path.write_text(f"{SECRET}\n", encoding="utf-8")
    monkeypatch.setenv("ADMIN_API_KEY_FILE", str(path))
    assert load_settings(None, app_env="development").admin_api_key.get_secret_value() == SECRET


def test_model_is_another_name_for_llm_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODEL", "qwen2.5:3b")
    assert load_settings(None, app_env="development").llm_model == "qwen2.5:3b"


def test_a_key_for_elevenlabs_chooses_its_voice() -> None:
    settings = load_settings(None, app_env="development", elevenlabs_api_key="sk_real", elevenlabs_voice_id="v")
    assert settings.voice == "elevenlabs"


@pytest.mark.parametrize(
    ("base", "stream"),
    [
        ("https://bot.test", "wss://bot.test/twilio/stream"),
        ("https://bot.test:8443/base/", "wss://bot.test:8443/base/twilio/stream"),
        ("", "ws://127.0.0.1:8000/twilio/stream"),
    ],
)
def test_the_stream_url_follows_the_public_url(base: str, stream: str) -> None:
    keys = {"twilio_auth_token": SECRET, "admin_api_key": SECRET}
    assert load_settings(None, app_env="development", public_base_url=base, **keys).stream_url == stream


def test_a_tunnel_opens_development_to_nobody() -> None:
    tunnel = {"app_env": "development", "public_base_url": "https://tunnel.test"}
    with pytest.raises(ConfigError, match=r"^TWILIO_AUTH_TOKEN: not set, and PUBLIC_BASE_URL can be reached"):
        load_settings(None, **tunnel)
    with pytest.raises(ConfigError, match=r"^ADMIN_API_KEY: not set"):
        load_settings(None, **tunnel, twilio_auth_token=SECRET)
    local = load_settings(None, app_env="development", public_base_url="http://localhost:8000")
    assert local.base_url == "http://localhost:8000"


def test_settings_do_not_change_and_do_not_show_their_secrets() -> None:
    settings = load_settings(None, app_env="development", admin_api_key=SECRET)
    assert SECRET not in repr(settings)
    with pytest.raises(ValueError, match="frozen"):
        settings.port = 1


# ---------------------------------------------------------------- recognisers


@pytest.mark.parametrize(
    ("given", "missing"),
    [
        ({"STT_PROVIDER": "rtzr"}, "RTZR_CLIENT_ID, RTZR_CLIENT_SECRET"),
        ({"STT_PROVIDER": "rtzr", "RTZR_CLIENT_ID": "a"}, "RTZR_CLIENT_SECRET"),
        ({"STT_FALLBACK": "google"}, "GOOGLE_APPLICATION_CREDENTIALS"),
        ({"STT_PROVIDER": "legacy"}, "GOOGLE_APPLICATION_CREDENTIALS"),
        ({"STT_PROVIDER": "legacy", "STT_BATCH_PROVIDER": "openai"}, "OPENAI_API_KEY"),
        ({"STT_PROVIDER": "legacy", "STT_BATCH_PROVIDER": "openai", "OPENAI_API_KEY": "your-key"}, "OPENAI_API_KEY"),
        ({"STT_PROVIDER_BY_NUMBER": "+82701234567=rtzr"}, "RTZR_CLIENT_ID, RTZR_CLIENT_SECRET"),
    ],
)
def test_a_recogniser_that_calls_may_be_given_must_have_its_credentials(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, str], missing: str
) -> None:
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=f"^{missing}:"):
        load_settings(None, app_env="development")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("STT_PROVIDER", "whisper"),
        ("STT_FALLBACK", "local,siri"),
        ("STT_PROVIDER_BY_NUMBER", "01012345678=local"),
        ("STT_PROVIDER_BY_NUMBER", "+82701234567"),
        ("PARTIAL_FLUSH_MS", "5000"),
        ("ASR_URL", "asr:5005"),
        ("ASR_URL", "http://asr:99999"),
    ],
)
def test_recognisers_that_cannot_be_meant_are_refused(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    monkeypatch.setenv("WINDOW_S", "2")
    with pytest.raises(ConfigError, match=f"^{name}"):
        load_settings(None, app_env="development")


def test_recognisers_are_all_that_a_call_may_be_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STT_FALLBACK", " legacy , local")
    monkeypatch.setenv("STT_PROVIDER_BY_NUMBER", "+82701234567 = remote , +82701234568=local")
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "/run/secrets/google.json")
    settings = load_settings(None, app_env="development")
    assert settings.recognisers == ("local", "legacy", "remote")
    assert settings.stt_provider_by_number == {"+82701234567": "remote", "+82701234568": "local"}


# ---------------------------------------------------------------- profiles


def test_what_is_set_by_name_wins_over_the_profile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROFILE", "accuracy")
    monkeypatch.setenv("BEAM_SIZE", "5")
    settings = load_settings(None, app_env="development")
    assert (settings.model_name, settings.beam_size, settings.compute_type) == ("large-v3", 5, "float16")


def test_an_unknown_profile_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROFILE", "fast")
    with pytest.raises(ConfigError, match=r"^PROFILE:"):
        load_settings(None, app_env="development")


# ---------------------------------------------------------------- the recogniser as a program of its own


def test_the_service_asks_for_neither_a_telephone_nor_a_voice() -> None:
    assert load_asr_settings(None).asr_port == 5005


def test_a_service_that_others_reach_must_have_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOST", "0.0.0.0")
    with pytest.raises(ConfigError, match=r"^ASR_API_KEY:"):
        load_asr_settings(None)
    monkeypatch.setenv("ASR_API_KEY", SECRET)
    assert load_asr_settings(None).host == "0.0.0.0"
