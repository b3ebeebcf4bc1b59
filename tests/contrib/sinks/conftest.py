"""Brokers for the tests of sinks; the tests are skipped where there is none."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.contrib.sinks.records import THEM
from tests.projections.readmodels import declaring
from tests.servers import NATS, Broker, RabbitMQ, ServerError


def started(kind: type[Broker]) -> Iterator[Broker]:
    """Yield a broker of its own for a module: the tests kill it."""
    try:
        broker = kind()
    except ServerError as error:
        pytest.skip(str(error))
    with broker:
        yield broker


@pytest.fixture(scope="module")
def nats_server() -> Iterator[Broker]:
    yield from started(NATS)


@pytest.fixture(scope="module")
def rabbitmq_server() -> Iterator[Broker]:
    yield from started(RabbitMQ)


@pytest.fixture
def rabbitmq_url(request: pytest.FixtureRequest) -> str:
    """A server that may be shared: it is not killed."""
    if url := os.environ.get("RABBITMQ_URL"):
        RabbitMQ.check(url)
        return url
    url = request.getfixturevalue("rabbitmq_server").url
    assert isinstance(url, str)
    return url


@pytest.fixture(autouse=True)
def _declared() -> Iterator[None]:
    with declaring(THEM):
        yield
