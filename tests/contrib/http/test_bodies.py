"""Bodies: strict JSON, and digests that are equal for equal requests only."""

from __future__ import annotations

import json

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from django.http.request import RawPostDataException
from django.test import RequestFactory
from django.test.client import MULTIPART_CONTENT, encode_multipart

from eventlogs.contrib.http import Problem, read_json
from eventlogs.contrib.http.bodies import body_of, digests_of, is_digest_of, plain

factory = RequestFactory()


def posted(body, content_type: str = "application/json", *, path: str = "/a/", method="POST"):
    return factory.generic(method, path, body, content_type)


def digest(*arguments, **options) -> str:
    request = posted(*arguments, **options)
    return next(digests_of(request, plain(body_of(request))))


def form(boundary: str, *, note: str = "x", content: bytes = b"scan") -> bytes:
    file = SimpleUploadedFile("a.txt", content, "text/plain")
    return encode_multipart(boundary, {"note": note, "file": file})


def form_digest(boundary: str = "b1", **fields) -> str:
    return digest(form(boundary, **fields), f"multipart/form-data; boundary={boundary}")


def test_json_is_read():
    assert read_json(posted(b'{"a": [1, null]}')) == {"a": [1, None]}


@pytest.mark.parametrize(
    "body",
    [
        *(b" ", b"{", b'{"a": NaN}', b'{"a": 1, "a": 2}', b"\xef\xbb\xbf{}", b'"\xff"'),
        *(b"[" * 100_000, b"1e999", b'{"a": -1e400}'),
    ],
)
def test_what_is_no_strict_json_is_400(body):
    with pytest.raises(Problem) as caught:
        read_json(posted(body))

    assert caught.value.status == 400


def test_another_media_type_is_415():
    with pytest.raises(Problem) as caught:
        read_json(posted(b"{}", "text/plain"))

    assert (caught.value.status, caught.value.headers) == (415, {"Accept": "application/json"})


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (b'{"a": 1, "b": [2]}', b'{"b":[2],"a":1}'),
        (b'{"a": "\\u00e9"}', '{"a": "é"}'.encode()),
    ],
)
def test_equal_json_has_one_digest(one, other):
    assert digest(one) == digest(other)


@pytest.mark.parametrize(
    "other",
    [
        b'{"a": 2}',
        b'{"a": "1"}',
        b'{"a": 1.0}',
        b'{"a": true}',
        b'{"a": 1, "b": null}',
        b'[{"a": 1}]',
        b'{"a": 2, "a": 1}',
        b'{"a": 1} ...',
        b"",
    ],
)
def test_other_json_has_another_digest(other):
    assert digest(b'{"a": 1}') != digest(other)


def test_method_path_query_and_media_type_count():
    found = {
        digest(b"{}"),
        digest(b"{}", method="PUT"),
        digest(b"{}", path="/b/"),
        digest(b"{}", path="/a/?dry=1"),
        digest(b"{}", "text/plain"),
        digest(b"{}", "text/csv"),
    }

    assert len(found) == 6


def test_a_media_type_that_ends_with_json_is_json():
    assert digest(b'{"a":1}', "application/merge-patch+json") == digest(
        b'{ "a": 1 }', "application/merge-patch+json"
    )


def test_a_form_counts_as_its_fields_and_files():
    assert form_digest("b1") == form_digest("b2")
    assert form_digest() != form_digest(note="y")
    assert form_digest() != form_digest(content=b"scam")


def test_a_form_that_is_not_posted_counts_byte_by_byte():
    """Django reads the fields of a POST only."""
    other = f"multipart/form-data; boundary={'b1'}"

    assert digest(form("b1"), other, method="PUT") != digest(
        form("b1", note="y"), other, method="PUT"
    )


def test_a_file_can_be_read_after_its_digest():
    request = factory.post("/", {"file": SimpleUploadedFile("a", b"abc")})
    body_of(request)

    [file] = request.FILES.getlist("file")
    assert file.read() == b"abc"


def test_a_form_that_was_read_already_has_the_same_digest():
    request = posted(form("b1"), "multipart/form-data; boundary=b1")
    assert request.POST["note"] == "x"

    assert next(digests_of(request, body_of(request))) == form_digest("b1")


def test_a_body_that_was_read_as_a_stream_is_an_error_of_the_view():
    request = posted(b"abc", "text/plain")
    request.read(1)

    with pytest.raises(RawPostDataException):
        body_of(request)


def test_a_repeated_field_counts():
    assert digest("a=1&a=2", "application/x-www-form-urlencoded") != digest(
        "a=2", "application/x-www-form-urlencoded"
    )
    one, other = (
        digest(
            encode_multipart("b", {"a": values}), MULTIPART_CONTENT.replace("BoUnDaRyStRiNg", "b")
        )
        for values in (["1", "2"], ["2"])
    )
    assert one != other


def test_a_digest_is_keyed_and_known_after_a_rotation(settings):
    request = posted(b"{}")
    before = digest(b"{}")

    settings.SECRET_KEY, settings.SECRET_KEY_FALLBACKS = "new", [settings.SECRET_KEY]

    assert digest(b"{}") != before
    assert is_digest_of(before, request, body_of(request))
    settings.SECRET_KEY_FALLBACKS = []
    assert not is_digest_of(before, request, body_of(request))


@pytest.mark.parametrize("stored", [None, 1, "", ["x"], "é"])
def test_what_is_no_digest_belongs_to_no_request(stored):
    request = posted(b"{}")

    assert not is_digest_of(stored, request, body_of(request))


def test_a_value_of_any_json_is_plain():
    value = {"a": [1, {"b": None}], "c": (2,)}

    assert plain(value) == {"a": [1, {"b": None}], "c": [2]}
    assert json.dumps(plain(value))
