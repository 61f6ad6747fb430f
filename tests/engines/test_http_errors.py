"""Reasons of refusals, from bodies of any shape, and the parameters that they blame."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prmbench.engines.http_errors import REASON_LENGTH, blamed_parameters, error_reason, error_text

NAMES = ("temperature", "top_p", "seed", "max_tokens")
WHY = "temperature: not today"


def raw(body: Any) -> bytes:
    return body if isinstance(body, bytes) else json.dumps(body).encode()


@pytest.mark.parametrize(
    "body",
    [
        {"error": {"message": WHY, "type": "invalid_request_error", "param": None, "code": None}},
        {"error": WHY},
        {"error": [WHY]},
        {"errors": [{"message": WHY}]},
        {"object": "error", "message": WHY, "type": "BadRequestError", "param": None, "code": 400},
        {"type": "error", "error": {"type": "invalid_request_error", "message": WHY}},
        {"detail": WHY},
        {"detail": {"error": {"message": WHY}}},
        {"detail": [{"type": "extra_forbidden", "loc": ["temperature"], "msg": "not today", "input": 0.5}]},
        [{"error": {"code": 400, "message": WHY, "status": "INVALID_ARGUMENT"}}],
        {"title": WHY, "status": 400},
        {"fault": {"faultstring": WHY}},
        {"error": {"message": "", "metadata": {"raw": json.dumps({"error": {"message": WHY}})}}},
        {"message": json.dumps({"detail": WHY})},
        {"Message": WHY},
        {"error_code": 336003, "error_msg": WHY},
        {"base_resp": {"status_code": 1004, "status_msg": WHY}, "choices": None},
        WHY,
        WHY.encode(),
        WHY.encode("utf-16"),
        json.dumps({"error": WHY}).encode("utf-32"),
        f"\n  {WHY}\r\n".encode(),
        f"<html><head><title>400</title><style>p {{}}</style></head><body><p>{WHY}</p></body></html>".encode(),
        b"<p>temperature&#58; not&nbsp;today",
    ],
)
def test_the_reason_of_a_body_of_any_shape(body: Any) -> None:
    result = error_reason(raw(body))
    assert result.removeprefix("400 ") == WHY
    assert blamed_parameters(raw(body), NAMES) == ["temperature"]


def test_a_reason_is_one_short_printable_line() -> None:
    result = error_reason(raw({"error": {"message": "a\x1b[31m\nb\ttemperature \ud800\u202e" + "long " * 999}}))
    assert result.isprintable()
    assert result.startswith("a [31m b temperature long")
    assert len(result) == REASON_LENGTH


@pytest.mark.parametrize(
    "body", [b"", b"  ", b"{}", b"[]", b"null", b'{"error": {}}', b"\xff\xfe\x00" * 3, b"[" * 99_999]
)
def test_a_body_that_gives_no_reason(body: bytes) -> None:
    result = error_reason(body, "status 400")
    assert result
    assert len(result) <= REASON_LENGTH
    assert blamed_parameters(body, NAMES) == []


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"error": {"message": "Unsupported value", "param": "seed"}}, ["seed"]),
        ({"error": {"message": "temperature does not go with top_p", "param": "top_p"}}, ["top_p"]),
        ({"detail": [{"loc": ["body", "seed"], "msg": "Extra inputs are not permitted", "input": 7}]}, ["seed"]),
        # what a server quotes of the request names no culprit
        (
            {"detail": [{"loc": ["body", "seed"], "msg": "bad", "input": {"temperature": 1, "param": "top_p"}}]},
            ["seed"],
        ),
        ({"error": "`temperature` and `top_p` cannot both be given"}, ["temperature", "top_p"]),
        ({"error": "unknown field body.top_p"}, ["top_p"]),
        ({"error": "max_completion_tokens is too large"}, []),
        ({"error": "seeds are bad, so is temperature_2"}, []),
    ],
)
def test_which_parameters_are_blamed(body: Any, expected: list[str]) -> None:
    assert blamed_parameters(raw(body), NAMES) == expected


@pytest.mark.parametrize("piece", ["<script", "<", "</", "<!--", "<title>", "://", "?key=", "authorization: bearer "])
def test_a_long_page_is_read_in_no_time(piece: str) -> None:
    page = f"<p>{WHY} {piece * 200_000}".encode()
    assert error_reason(page).startswith(WHY)
    assert blamed_parameters(page, NAMES) == ["temperature"]


ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["error", "message", "detail", "loc", "msg", "param", "x"]), inner, max_size=3
        )
    ),
    max_leaves=10,
)


@given(body=st.binary(max_size=60) | ANY.map(raw))
@settings(max_examples=300, deadline=None)
def test_no_body_is_a_traceback(body: bytes) -> None:
    result = error_reason(body)
    assert result.isprintable()
    assert 0 < len(result) <= REASON_LENGTH
    error_text(body)
    blamed_parameters(body, NAMES)
