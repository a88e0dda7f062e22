"""Tokens, honest and crafted."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import InvalidArgumentError, UnauthenticatedError
from server.access.principal import Rule, Scope
from server.access.tokens import Tokens, VerifyingKey, read_jwks, read_secret
from tests.server.access.crafted import (
    AUDIENCE,
    ISSUER,
    NOW_S,
    Issuer,
    b64,
    claims,
    hs256,
    number,
    token,
)

ALGORITHMS = ("RS256", "ES256", "EdDSA")
SECRET = b"s" * 32


@pytest.fixture(scope="module")
def issuer() -> Issuer:
    return Issuer()


@pytest.fixture(scope="module")
def tokens(issuer: Issuer, tmp_path_factory: pytest.TempPathFactory) -> Tokens:
    path = issuer.jwks(tmp_path_factory.mktemp("keys") / "jwks.json")
    return Tokens(read_jwks(path), ISSUER, AUDIENCE)


def refusal(tokens: Tokens, text: str, now_s: float = NOW_S) -> str:
    with pytest.raises(UnauthenticatedError) as caught:
        tokens.grant(text, now_s)
    assert len(text) < 8 or text not in caught.value.message
    return caught.value.message


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_good_token_is_its_subject_with_its_scopes(
    issuer: Issuer, tokens: Tokens, algorithm: str
) -> None:
    text = token(claims(), issuer.sign[algorithm], alg=algorithm, kid=algorithm)
    grant = tokens.grant(text, NOW_S)
    assert (grant.principal.name, grant.principal.tenant) == ("robot", "robot")
    assert grant.principal.rules == (Rule(frozenset({Scope.INFER, Scope.METADATA})),)
    assert grant.expires_s == NOW_S + 630


def test_another_library_makes_the_same_tokens(issuer: Issuer, tokens: Tokens) -> None:
    text = jwt.encode(claims(), issuer.ec, "ES256", {"kid": "ES256"})
    assert tokens.grant(text, NOW_S).principal.name == "robot"


def test_claims_name_the_tenant_and_the_names(issuer: Issuer, tokens: Tokens) -> None:
    chosen = Tokens(tokens.keys, ISSUER, AUDIENCE, 30.0, "org", "models")
    good = claims(org="acme", models=["fraud-*"], scope=["infer", "other", 7])
    sign = issuer.sign["EdDSA"]
    grant = chosen.grant(token(good, sign, alg="EdDSA", kid="EdDSA"), NOW_S)
    assert grant.principal.tenant == "acme"
    assert grant.principal.rules == (Rule(frozenset({Scope.INFER}), ("fraud-*",)),)
    for bad in (
        claims(org="acme"), claims(models=[]), claims(org="", models=[]),
        claims(org="a\nb", models=[]), claims(org="acme", models="fraud-*"),
        claims(org="acme", models=[1]), claims(org="acme", models=["x"] * 65),
    ):  # fmt: skip
        assert "claim" in refusal(chosen, token(bad, sign, alg="EdDSA", kid="EdDSA"))


BAD_CLAIMS: list[tuple[dict[str, Any], str]] = [
    ({"exp": None}, "lacks claim 'exp'"),
    ({"exp": NOW_S - 31}, "has expired"),
    ({"exp": "tomorrow"}, "malformed claim 'exp'"),
    ({"exp": True}, "malformed claim 'exp'"),
    ({"exp": float("nan")}, "malformed claim 'exp'"),
    ({"exp": float("inf")}, "malformed claim 'exp'"),
    ({"exp": [NOW_S]}, "malformed claim 'exp'"),
    ({"nbf": NOW_S + 31}, "is of the future"),
    ({"iat": NOW_S + 31}, "is of the future"),
    ({"nbf": "now"}, "malformed claim 'nbf'"),
    ({"aud": None}, "lacks claim 'aud'"),
    ({"aud": "other"}, "another audience"),
    ({"aud": ["other", "another"]}, "another audience"),
    ({"aud": {"headrace": 1}}, "another audience"),
    ({"iss": None}, "lacks claim 'iss'"),
    ({"iss": "https://issuer.example.evil"}, "another issuer"),
    ({"iss": [ISSUER]}, "another issuer"),
    ({"sub": None}, "lacks claim 'sub'"),
    ({"sub": ""}, "lacks claim 'sub'"),
    ({"sub": "a\r\nb"}, "lacks claim 'sub'"),
    ({"sub": "x" * 300}, "lacks claim 'sub'"),
    ({"sub": 7}, "malformed|lacks"),
    ({"scope": 7}, "malformed claim 'scope'"),
]


@pytest.mark.parametrize(("changes", "text"), BAD_CLAIMS)
def test_a_token_with_bad_claims_is_refused(
    issuer: Issuer, tokens: Tokens, changes: dict[str, Any], text: str
) -> None:
    bad = token(claims(**changes), issuer.sign["ES256"], alg="ES256", kid="ES256")
    assert re.search(text, refusal(tokens, bad))


def test_clocks_may_differ_by_the_leeway(issuer: Issuer, tokens: Tokens) -> None:
    sign = issuer.sign["ES256"]
    for good in (claims(exp=NOW_S - 29), claims(nbf=NOW_S + 29), claims(iat=NOW_S + 29)):
        tokens.grant(token(good, sign, alg="ES256", kid="ES256"), NOW_S)
    several = claims(aud=["other", AUDIENCE])
    tokens.grant(token(several, sign, alg="ES256", kid="ES256"), NOW_S)


def test_no_token_chooses_its_algorithm(issuer: Issuer, tokens: Tokens) -> None:
    public = issuer.rsa.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    nothing = lambda _: b""  # noqa: E731
    crafted = [
        token(claims(), nothing, alg="none", kid="RS256"),
        token(claims(), nothing, alg="None", kid="RS256"),
        token(claims(), nothing, alg="none"),
        token(claims(), nothing, kid="RS256"),
        # The public key as the secret of an HMAC (CVE-2015-9235).
        token(claims(), hs256(public), alg="HS256", kid="RS256"),
        token(claims(), hs256(issuer.ed.public_key().public_bytes_raw()), alg="HS256", kid="EdDSA"),
        # A key of another kind, and one that the token brings itself (CVE-2018-0114).
        token(claims(), issuer.sign["ES256"], alg="ES256", kid="RS256"),
        token(claims(), issuer.sign["RS256"], alg="RS256", kid="ES256"),
        token(claims(), issuer.sign["RS256"], alg="RS512", kid="RS256"),
        token(claims(), Issuer().sign["ES256"], alg="ES256", kid="ES256", jwk=issuer.jwk["ES256"]),
        token(claims(), Issuer().sign["ES256"], alg="ES256", kid="ES256", jku="https://evil"),
        # Zeros as a signature (CVE-2022-21449).
        token(claims(), lambda _: bytes(64), alg="ES256", kid="ES256"),
        token(claims(), issuer.sign["ES256"], alg="ES256", kid="ES256", crit=["exp"]),
        token(claims(), issuer.sign["ES256"], alg="ES256", kid="ES256", crit=["b64"], b64=False),
        token(claims(), issuer.sign["ES256"], alg="ES256", kid="../../etc/passwd"),
        token(claims(), issuer.sign["ES256"], alg="ES256", kid=["ES256"]),
        token(claims(), issuer.sign["ES256"], alg="ES256"),
        token(claims(), issuer.sign["ES256"], alg=["ES256"], kid="ES256"),
        token([claims()], issuer.sign["ES256"], alg="ES256", kid="ES256"),
        token("text", issuer.sign["ES256"], alg="ES256", kid="ES256"),
    ]
    for text in crafted:
        refusal(tokens, text)


def test_a_signature_is_of_this_very_text(issuer: Issuer, tokens: Tokens) -> None:
    for algorithm in ALGORITHMS:
        good = token(claims(), issuer.sign[algorithm], alg=algorithm, kid=algorithm)
        head, payload, signature = good.split(".")
        other = b64(json.dumps(claims(scope="admin")).encode())
        for text in (
            f"{head}.{other}.{signature}", f"{head}.{payload}.", f"{head}.{payload}",
            f"{head}.{payload}.{signature}.{signature}", f".{payload}.{signature}",
            f"{head}.{payload}.{signature[:-8]}", f"{signature}.{payload}.{head}", "..", "",
        ):  # fmt: skip
            refusal(tokens, text)


@given(st.text(max_size=60) | st.text("eyJ0.-_=", max_size=60))
def test_any_text_is_a_token_or_refused(text: str) -> None:
    key = {None: VerifyingKey("HS256", SECRET)}
    with pytest.raises(UnauthenticatedError):
        Tokens(key, ISSUER, AUDIENCE).grant(text, NOW_S)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["exp", "aud", "iss", "sub", "nbf", "scope", "x"]), inner)
    ),
    max_leaves=8,
)


@given(JSON, st.dictionaries(st.sampled_from(["exp", "aud", "iss", "sub", "nbf", "scope"]), JSON))
def test_a_signed_payload_of_any_form_is_taken_or_refused(
    payload: Any, changes: dict[str, Any]
) -> None:
    found = Tokens({None: VerifyingKey("HS256", SECRET)}, ISSUER, AUDIENCE)
    for each in (payload, {**claims(), **changes}):
        try:
            grant = found.grant(token(each, hs256(SECRET), alg="HS256"), NOW_S)
        except UnauthenticatedError:
            continue
        assert grant.expires_s > NOW_S
        assert grant.principal.name


def test_a_secret_is_for_hs256_alone(issuer: Issuer, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(SECRET + b"\n")
    found = Tokens({None: read_secret(tmp_path / "secret")}, ISSUER, AUDIENCE)
    good = token(claims(), hs256(SECRET), alg="HS256", kid="any")
    assert found.grant(good, NOW_S).principal.name == "robot"
    refusal(found, token(claims(), issuer.sign["RS256"], alg="RS256"))
    refusal(found, token(claims(), hs256(SECRET), alg="none"))
    (tmp_path / "short").write_bytes(b"short")
    for name in ("short", "none"):
        with pytest.raises(InvalidArgumentError, match=name):
            read_secret(tmp_path / name)


def test_a_token_may_not_be_longer_than_a_head(tokens: Tokens) -> None:
    assert "too long" in refusal(tokens, "a" * 9000)


def test_one_key_needs_no_kid(issuer: Issuer, tmp_path: Path) -> None:
    (tmp_path / "one").write_text(json.dumps({"keys": [issuer.jwk["EdDSA"] | {"use": "sig"}]}))
    found = Tokens(read_jwks(tmp_path / "one"), ISSUER, AUDIENCE)
    found.grant(token(claims(), issuer.sign["EdDSA"], alg="EdDSA"), NOW_S)


def test_a_jwks_that_is_none_says_what_is_wrong(issuer: Issuer, tmp_path: Path) -> None:
    good = issuer.jwk["ES256"]
    short = rsa.generate_private_key(65537, 1024).public_key().public_numbers()
    bad: list[tuple[Any, str]] = [
        ([], "is not a JWKS"),
        ({"keys": []}, "is not a JWKS"),
        ({"keys": [good] * 2}, "no kid"),
        ({"keys": [good | {"kid": "a"}] * 2}, "another has"),
        ({"keys": [good | {"kid": 7}]}, "kid"),
        ({"keys": ["key"]}, "is no key"),
        ({"keys": [good | {"alg": "ES512"}]}, "not taken"),
        ({"keys": [good | {"crv": ["P-256"]}]}, "not taken"),
        ({"keys": [{"kty": "oct", "k": b64(SECRET)}]}, "not taken"),
        ({"keys": [good | {"d": "AA"}]}, "private key"),
        ({"keys": [good | {"use": "enc"}]}, "not for signatures"),
        ({"keys": [good | {"x": "AA"}]}, "malformed"),
        ({"keys": [good | {"y": None}]}, "malformed"),
        ({"keys": [{"kty": "RSA", "n": number(short.n), "e": "AQAB"}]}, "too short"),
    ]
    for content, text in bad:
        path = tmp_path / "bad.json"
        path.write_text(json.dumps(content))
        with pytest.raises(InvalidArgumentError, match=text):
            read_jwks(path)
    for data in (b"{", b"\xff", b"[" * 100_000):
        path.write_bytes(data)
        with pytest.raises(InvalidArgumentError, match="is not a JWKS"):
            read_jwks(path)
    with pytest.raises(InvalidArgumentError, match="cannot be read"):
        read_jwks(tmp_path / "none")
