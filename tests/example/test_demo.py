"""``manage.py demo``, run as a user runs it."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest

from tests.example.conftest import manage

ELSEWHERE = "postgresql://nobody@nowhere.invalid:1/nothing"


def demo(*arguments: str | Path, database_url: str = ELSEWHERE) -> tuple[int, str, str]:
    with manage("demo", *arguments, database_url=database_url) as program:
        out = program.ended(code=None)
        return program.returncode, out, program.error_text


def test_the_demo_runs_a_payment_in_a_temporary_database_file():
    start = time.monotonic()
    status, out, err = demo()

    assert (status, err) == (0, "")
    assert time.monotonic() - start < 30
    for shown in (
        "event 0   payment.requested(amount=10000)",
        "event 1   payment.authorized(amount=10000, approval_code='xyz123')",
        "version 2 requested 10000, approved 10000, captured 0, refunded 0",
        "created: False",
        "IdempotentReplay: ",
        "IdempotencyKeyReused: ",
        "ConcurrentAppend: ",
        "PaymentRefused: ",
        "payments.reduce(log_id, version=2)",
        "payments.reduce(log_id, at=at)",
        "payment.approved, schema version 1: {'amount': 500}",
        "Authorized(amount=500, approval_code=None)",
        "InvalidEvent: payment.captured at $.amount",
        "version 5 requested 10000, approved 10000, captured 10000, refunded 2500",
    ):
        assert shown in out


def test_reducing_as_of_a_moment_shows_the_first_capture():
    _, out, _ = demo()

    [then] = re.findall(r"reduce\(log_id, at=at\)\n +(.*)\n", out)
    assert then == "version 3 requested 10000, approved 10000, captured 6000, refunded 0"


def test_the_output_is_ascii_in_at_most_80_columns():
    _, out, _ = demo()

    assert max(map(len, out.splitlines())) <= 80
    assert out.isascii()  # also: no colours where it is not a terminal
    assert "\x1b" not in out


def test_force_color_gives_coloured_output():
    _, out, _ = demo("--force-color")

    assert "\x1b[" in out


def test_the_temporary_file_is_removed():
    _, out, _ = demo()

    [path] = re.findall(r"^on SQLite, in (.*)$", out, re.MULTILINE)
    assert not Path(path).parent.exists()


def test_the_demo_can_be_run_again_on_a_kept_file(tmp_path):
    path = tmp_path / "kept.sqlite3"

    for _ in range(2):
        status, out, err = demo("--database", path)

        assert (status, err) == (0, "")
        assert f"DATABASE_URL=sqlite:///{path} python manage.py runserver" in out
        assert path.exists()


@pytest.mark.parametrize("database_url", ["", "mysql://a@b/c", "sqlite:////nowhere/x", "nonsense"])
def test_database_url_is_ignored(database_url):
    status, _, err = demo(database_url=database_url)

    assert (status, err) == (0, "")


def test_a_file_that_is_no_database_is_an_error_and_stays_unchanged(tmp_path):
    path = tmp_path / "letter.txt"
    path.write_text("Dear Sir or Madam, " * 100)

    status, _, err = demo("--database", path)

    assert status == 1
    assert err.startswith("CommandError: ")
    assert str(path) in err
    assert path.read_text().startswith("Dear Sir")


def test_a_missing_directory_is_an_error(tmp_path):
    status, _, err = demo("--database", tmp_path / "nowhere" / "demo.sqlite3")

    assert status == 1
    assert err.startswith("CommandError: ")
