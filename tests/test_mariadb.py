"""From the URL of a MariaDB server to Django's settings."""

from __future__ import annotations

import pytest

from tests.mariadb import connection_from_url, settings_from_url


def test_every_part_of_a_url_finds_its_place():
    url = "mysql://me:p%40ss@db.example:3307/ledger"

    assert connection_from_url(url) == {
        "user": "me",
        "password": "p@ss",
        "host": "db.example",
        "port": 3307,
        "database": "ledger",
    }
    assert connection_from_url("mariadb://root@127.0.0.1/")["port"] == 3306


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me:secret@127.0.0.1/x",
        "mysql://me:secret@127.0.0.1:secret/x",
        "mysql://me@127.0.0.1/x?sslmod=require",
    ],
)
def test_an_invalid_url_of_a_server_is_refused(url):
    with pytest.raises(ValueError):  # noqa: PT011 (urllib's own message, for a port)
        connection_from_url(url)


@pytest.mark.mariadb
def test_a_socket_is_a_host():
    settings = settings_from_url("mysql://root@/mysql?unix_socket=/tmp/x", test_name="test_x")

    assert (settings["HOST"], settings["PORT"], settings["NAME"]) == ("/tmp/x", "", "mysql")
    assert settings["TEST"]["NAME"] == "test_x"
