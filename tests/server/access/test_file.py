"""Access files: what they say, and what is said of wrong ones before anything starts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headrace.errors import InvalidArgumentError
from server.access.budgets import Limit
from server.access.file import check_access, parse_limits, read_access_file
from server.access.keys import new_key
from server.access.principal import Principal, Rule, Scope

KEY, STORED = new_key(lambda count: bytes(range(count)))
GOOD = f"""
[[principals]]
name = "shop"
keys = ["{STORED}"]
tenant = "acme"
allow = [{{scopes = ["infer", "metadata"], names = ["fraud-*"]}}, {{scopes = ["features"]}}]

[[limits]]
tenant = "acme"
requests_per_s = 100
burst = 200.0
concurrent = 8
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "access.toml"
    path.write_text(text)
    return path


def test_a_file_says_who_may_what_and_how_much(tmp_path: Path) -> None:
    access = read_access_file(write(tmp_path, GOOD))
    rules = (
        Rule(frozenset({Scope.INFER, Scope.METADATA}), ("fraud-*",)),
        Rule(frozenset({Scope.FEATURES})),
    )
    assert access.keys == {STORED.key_id: (STORED, Principal("shop", "acme", rules))}
    assert access.limits == [Limit("acme", ("*",), 100.0, 200.0, None, 8)]
    assert access.tokens is None


def test_tokens_are_read_by_the_files_that_it_names(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"s" * 40)
    text = '[jwt]\nissuer = "i"\naudience = "a"\nsecret_file = "secret"\ntenant_claim = "org"\n'
    tokens = read_access_file(write(tmp_path, text)).tokens
    assert tokens is not None
    assert (tokens.issuer, tokens.tenant_claim) == ("i", "org")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "lets nobody in"),
        ("[[limits]]\nrequests_per_s = 1", "lets nobody in"),
        ("x =", "is not TOML"),
        ("x = 1", "unknown field `x`"),
        (GOOD.replace('"infer"', '"infr"'), "Invalid enum value 'infr'"),
        (GOOD.replace('["fraud-*"]', "[]"), "length >= 1"),
        (GOOD.replace(str(STORED), KEY), "is no line of new-key"),
        (GOOD + GOOD.split("[[limits]]", maxsplit=1)[0], "is there twice"),
        (GOOD.replace("requests_per_s = 100", "requests_per_s = 0"), "> 0"),
        (GOOD.replace("requests_per_s = 100", ""), "has a burst"),
        (GOOD + '[[limits]]\ntenant = "b"', "limits nothing"),
        ('[jwt]\nissuer = "i"\naudience = "a"', "either jwks or secret_file"),
        ('[jwt]\nissuer = "i"\naudience = "a"\njwks = "no"', "no: cannot be read"),
        ('[jwt]\nissuer = "i"\njwks = "no"', "missing required field `audience`"),
    ],
)
def test_a_wrong_file_says_what_is_wrong(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        read_access_file(write(tmp_path, text))
    assert message in caught.value.message
    assert KEY not in caught.value.message
    assert str(tmp_path) not in caught.value.message


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match=r"access\.toml: cannot be read"):
        read_access_file(tmp_path / "access.toml")
    (tmp_path / "access.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(InvalidArgumentError, match="is not TOML"):
        read_access_file(tmp_path / "access.toml")


def test_certificates_are_known_by_a_name(tmp_path: Path) -> None:
    text = '[[principals]]\nname = "a"\nallow = []\ncertificates = ["cn:x", "dns:A.Example"]\n'
    read = read_access_file(write(tmp_path, text))
    assert sorted(read.certificates) == ["cn:x", "dns:a.example"]
    assert {principal.name for principal in read.certificates.values()} == {"a"}
    path = write(tmp_path, text)
    with pytest.raises(InvalidArgumentError, match="--tls-client-ca"):
        check_access(path, None)
    assert check_access(path, "ca.pem").certificates.keys() == read.certificates.keys()
    for bad, said in (
        (text + text.replace('"a"', '"b"'), "is there twice"),
        (text.replace("cn:x", "x"), "none of uri:"),
        (text.replace("cn:x", "cn:"), "none of uri:"),
    ):
        with pytest.raises(InvalidArgumentError, match=said):
            read_access_file(write(tmp_path, bad))


def test_limits_in_json_look_as_in_the_file() -> None:
    document = json.dumps(
        [{"tenant": "acme", "requests_per_s": 100, "burst": 200, "concurrent": 8}]
    )
    assert parse_limits(document.encode()) == [Limit("acme", ("*",), 100.0, 200.0, None, 8)]
    texts = (b"{}", b"[", b'[{"x": 1}]', b'[{"tenant": "a"}]', b'[{"concurrent": 0}]')
    for bad in (*texts, b"\xff", b'[{"tenant": "\xff", "concurrent": 1}]'):
        with pytest.raises(InvalidArgumentError):
            parse_limits(bad)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.binary(max_size=200) | st.text('[]{}"=.\nprincipalsjwt', max_size=60).map(str.encode))
def test_any_bytes_are_a_file_or_an_error_of_ours(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "access.toml"
    path.write_bytes(data)
    with pytest.raises(InvalidArgumentError):
        read_access_file(path)
