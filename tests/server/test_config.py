from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from headrace.errors import InvalidArgumentError, NotFoundError
from server.config import Settings, load_settings, mask_url, resource_counts


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def origin(effective: object, name: str) -> str:
    return next(o.origin for o in effective.origins if o.name == name)  # type: ignore[attr-defined]


@pytest.mark.parametrize("layers", range(16))
def test_flags_beat_environment_beats_file_beats_defaults(layers: int, tmp_path: Path) -> None:
    flag, variable, file, command = (bool(layers & 1 << bit) for bit in range(4))
    path = tmp_path / "settings.toml"
    path.write_text("workers = 3" if file else "")
    effective = load_settings(
        {"workers": 5 if flag else None},
        {"HEADRACE_WORKERS": "4"} if variable else {},
        file=path,
        defaults={"workers": 2} if command else None,
    )
    wanted = 5 if flag else 4 if variable else 3 if file else 2 if command else 1
    assert effective.settings.workers == wanted
    names = {
        5: "flag --workers",
        4: "environment HEADRACE_WORKERS",
        3: f"file {path}",
        2: "default",
        1: "default",
    }
    assert origin(effective, "workers") == names[wanted]


def test_the_file_of_the_working_folder_is_read_by_itself() -> None:
    Path("headrace.toml").write_text('data_dir = "here"\nreplay_scope = true\n')
    settings = load_settings({}, {}).settings
    assert settings == Settings(data_dir="here", replay_scope=True)


def test_headrace_config_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "other.toml").write_text("workers = 2")
    settings = load_settings({}, {"HEADRACE_CONFIG": str(tmp_path / "other.toml")}).settings
    assert settings.workers == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("grcp_port = 1", "unknown setting 'grcp_port'; did you mean grpc_port\\?"),
        ("colour = 1", "known: host, grpc_port"),
        ('grpc_port = "8001"', r"bad value for grpc_port \(expected int, got '8001'\)"),
        ("grpc_port = 65536", "expected int <= 65535"),
        ("workers = 0", "expected int >= 1"),
        ("workers = ", "not valid TOML"),
    ],
)
def test_a_mistake_in_the_file_is_one_line_that_names_it(text: str, message: str) -> None:
    Path("headrace.toml").write_text(text)
    with pytest.raises(InvalidArgumentError, match=message) as raised:
        load_settings({}, {})
    assert "headrace.toml" in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("HEADRACE_GRCP_PORT", "1", r"did you mean HEADRACE_GRPC_PORT\?"),
        ("HEADRACE_GRPC_PORT", "eighty", "environment HEADRACE_GRPC_PORT: bad value"),
        ("HEADRACE_REPLAY_SCOPE", "maybe", "expected bool"),
        ("HEADRACE_DRAIN_S", "-1", "drain_s"),
    ],
)
def test_a_mistake_in_the_environment(variable: str, value: str, message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        load_settings({}, {variable: value})


def test_what_kubernetes_sets_next_to_a_service_of_our_name_is_not_ours() -> None:
    environment = {
        "HEADRACE_PORT": "tcp://10.0.0.1:8001",
        "HEADRACE_PORT_8001_TCP_ADDR": "10.0.0.1",
        "HEADRACE_SERVICE_HOST": "10.0.0.1",
        "HEADRACE_SERVICE_PORT_GRPC": "8001",
    }
    assert load_settings({}, environment).settings == Settings()


def test_a_missing_file_that_was_named() -> None:
    with pytest.raises(NotFoundError, match=r"nowhere.toml"):
        load_settings({}, {}, file=Path("nowhere.toml"))


def test_a_password_is_shown_nowhere() -> None:
    secret = "s3cret"
    effective = load_settings({}, {"HEADRACE_REDIS": f"rediss://me:{secret}@store:6379/0"})
    assert effective.settings.redis.count(secret) == 1
    shown = {o.name: o.value for o in effective.origins}
    assert shown["redis"] == '"rediss://me:***@store:6379/0"'


@given(
    st.text("abcXYZ019-._~", min_size=1, max_size=20),
    st.text("abcXYZ019!$&'()*+,;=:", min_size=4, max_size=30),
)
def test_masking_keeps_all_but_the_password(user: str, password: str) -> None:
    shown = mask_url(f"redis://{user}:{password}@host:6379/0?x=1")
    assert shown == f"redis://{user}:***@host:6379/0?x=1"


@pytest.mark.parametrize("text", ["none", "embedded", "redis://h:1", "file:///a@b", "user@host"])
def test_text_without_a_password_is_shown_as_it_is(text: str) -> None:
    assert mask_url(text) == text


def test_of_several_urls_no_password_is_shown() -> None:
    urls = ["models", "ftp://me:secret@host/models"]
    effective = load_settings({"model_repository": urls}, {})
    (shown,) = [origin for origin in effective.origins if origin.name == "model_repository"]
    assert shown.value == '["models", "ftp://me:***@host/models"]'


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "data_dir": st.text(st.characters(codec="utf-8"), min_size=1),
            "load_model": st.lists(st.text(st.characters(codec="utf-8"))),
            "metrics_host": st.text(st.characters(codec="utf-8")),
            "drain_s": st.floats(0.0, 3600.0),
            "shared_memory": st.booleans(),
            "workers": st.integers(1, 4),
        },
    )
)
def test_what_is_shown_is_what_the_file_takes(given_values: dict[str, object]) -> None:
    effective = load_settings(given_values, {})
    assume(all(mask_url(text) == text for text in texts(given_values)))
    lines = (f"{o.name} = {o.value}" for o in effective.origins if o.value is not None)
    Path("shown.toml").write_text("\n".join(lines), encoding="utf-8", newline="")
    assert load_settings({}, {}, file=Path("shown.toml")).settings == effective.settings


def texts(values: dict[str, object]) -> list[str]:
    found = [value for value in values.values() if isinstance(value, str)]
    return found + list(values.get("load_model", []))  # type: ignore[call-overload]


def test_counts_of_resources() -> None:
    assert resource_counts(["R1:10", "r2:0"]) == {"R1": 10, "r2": 0}


@pytest.mark.parametrize(
    "text", ["", "R1", ":3", "R1:", "R1:-1", "R1:x", "R2:5:0", "R1:1234567890"]
)
def test_what_is_no_count_of_a_resource(text: str) -> None:
    with pytest.raises(InvalidArgumentError, match="NAME:COUNT"):
        resource_counts(["R1:1", text])
