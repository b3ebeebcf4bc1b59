from __future__ import annotations

from datetime import timedelta

import pytest
from django.core.management import CommandError
from django.db.models import F, QuerySet

from eventlogs.models import IdempotencyKey
from tests.accounts import Account, Opened


@pytest.fixture
def keys(db):
    """Three keys: of now, of 10 days ago and of 100 days ago."""
    for days in (0, 10, 100):
        Account.logs.create(Opened(owner="Ada"), idempotency_key=f"{days} days")
        QuerySet(IdempotencyKey).filter(key=f"{days} days").update(
            created_at=F("created_at") - timedelta(days=days)
        )


def left() -> list[str]:
    return sorted(IdempotencyKey.objects.values_list("key", flat=True))


@pytest.mark.parametrize(
    ("age", "kept"),
    [
        ("90d", ["0 days", "10 days"]),
        ("1w", ["0 days"]),
        ("240h", ["0 days"]),
        ("20000m", ["0 days", "10 days"]),
        ("52w", ["0 days", "10 days", "100 days"]),
    ],
)
def test_keys_older_than_an_age_are_pruned(keys, run, age, kept):
    run("prune", "--older-than", age)

    assert left() == kept


def test_the_setting_gives_the_age(keys, run, settings):
    settings.EVENTLOGS = {"IDEMPOTENCY_KEY_RETENTION": timedelta(days=50)}

    assert "1 key from before" in run("prune")
    assert left() == ["0 days", "10 days"]


def test_without_an_age_nothing_is_pruned(keys, run):
    with pytest.raises(CommandError, match="No age is set"):
        run("prune")

    assert len(left()) == 3


def test_a_dry_run_only_counts(keys, run_json):
    told = run_json("prune", "--older-than", "5d", "--dry-run")

    assert (told["keys"], told["dry_run"]) == (2, True)
    assert len(left()) == 3


@pytest.mark.parametrize("age", ["90", "d", "-1d", "0d", "1y", "999999999w", ""])
def test_an_invalid_age_is_a_command_error(keys, run, age):
    with pytest.raises(CommandError):
        run("prune", f"--older-than={age}")

    assert len(left()) == 3
