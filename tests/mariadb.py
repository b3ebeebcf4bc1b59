"""
The driver and the settings of the tests on MariaDB.

mysqlclient is the driver that Django names, and is used if it is installed. It has to be
compiled against MariaDB's client library, which few machines have. PyMySQL, which tox.ini
installs, needs no compiler and says that it is as new as Django demands.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

SCHEMES = ("mysql", "mariadb")

# A session's time zone must not matter; so that this is tested, it is never UTC here.
TIME_ZONE = "+05:45"


def driver() -> Any:
    """Return the module MySQLdb; PyMySQL under that name if mysqlclient is not installed."""
    if find_spec("MySQLdb") is None:
        import_module("pymysql").install_as_MySQLdb()
    return import_module("MySQLdb")


def connection_from_url(url: str) -> dict[str, Any]:
    """
    Return the connection arguments of both drivers, from ``mysql://user:password@host:port/name``.

    A socket is written as ``mysql://user@/name?unix_socket=/path``. Raise ValueError for
    another scheme, a port that is no number, and another parameter.
    """
    parts = urlsplit(url)
    if parts.scheme not in SCHEMES:
        raise ValueError("it does not begin with mysql://")
    found: dict[str, Any] = {
        "user": unquote(parts.username or ""),
        "password": unquote(parts.password or ""),
        "host": unquote(parts.hostname or ""),
        "port": parts.port or 3306,
        "database": unquote(parts.path.lstrip("/")),
    }
    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        if name != "unix_socket":
            raise ValueError("its only parameter is unix_socket")
        found["unix_socket"] = value
    return {name: value for name, value in found.items() if value != ""}


def settings_from_url(url: str, *, test_name: str) -> dict[str, Any]:
    """Return Django's settings for the server at a URL."""
    parameters = connection_from_url(url)
    driver()
    return {
        "ENGINE": "django.db.backends.mysql",
        "NAME": parameters.get("database", "mysql"),
        "USER": parameters.get("user", ""),
        "PASSWORD": parameters.get("password", ""),
        "HOST": parameters.get("unix_socket") or parameters.get("host", ""),
        "PORT": "" if "unix_socket" in parameters else str(parameters["port"]),
        "OPTIONS": {"init_command": f"SET time_zone = '{TIME_ZONE}'"},
        # The collation stays the server's, as in most projects: columns have to name theirs.
        "TEST": {"NAME": test_name, "CHARSET": "utf8mb4"},
    }
