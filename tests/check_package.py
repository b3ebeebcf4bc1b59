"""
Check the files of a wheel and an sdist, and that the wheel works without a checkout.

Usage: python tests/check_package.py DIRECTORY, where DIRECTORY has one of each.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "eventlogs"

# Run in an empty directory, in an environment with the wheel and its requirements.
SMOKE_TEST = """
import django
from django.conf import settings
from django.core.management import call_command

settings.configure(
    SECRET_KEY="only-here",
    USE_TZ=True,
    INSTALLED_APPS=["django.contrib.contenttypes", "django.contrib.auth", "eventlogs"],
    DATABASES={
        "default": {
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": "smoke.sqlite3",
            "OPTIONS": {"transaction_mode": "IMMEDIATE"},
        }
    },
)
django.setup()
call_command("check", fail_level="WARNING")
call_command("migrate", verbosity=0)
call_command("makemigrations", check=True, dry_run=True)

import eventlogs

for name in eventlogs.__all__:
    getattr(eventlogs, name)
print("eventlogs", eventlogs.__version__, "on Django", django.__version__, eventlogs.__file__)
"""


# A project's settings and tests: its own implementations, held to the contracts in the wheel.
SETTINGS = """
SECRET_KEY = "only-here"
USE_TZ = True
INSTALLED_APPS = ["eventlogs"]
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": "contracts.sqlite3",
        "OPTIONS": {"transaction_mode": "IMMEDIATE"},
        "TEST": {"NAME": "contracts-test.sqlite3"},
    }
}
"""
CONTRACTS = """
import pytest
from django.core.cache import caches

from eventlogs.refreshers import ImmediateRefresher
from eventlogs.stores.portable import PortableStore
from eventlogs.testing import MemoryStore, RecordingCache, check_aggregate
from eventlogs.testing.contracts.caches import ReductionCacheContract
from eventlogs.testing.contracts.refreshers import Account, RefresherContract
from eventlogs.testing.contracts.restoring import RestoreContract
from eventlogs.testing.contracts.rows import RowContract
from eventlogs.testing.contracts.stores import StoreContract
from eventlogs.testing.contracts.transactions import TransactionContract


class TestStore(StoreContract, RestoreContract):
    @pytest.fixture
    def store(self):
        return MemoryStore()


@pytest.mark.django_db(transaction=True)
class TestStoreInDatabase(TransactionContract, RowContract):
    @pytest.fixture
    def store(self):
        return PortableStore("default")


class TestCache(ReductionCacheContract):
    @pytest.fixture
    def cache(self):
        return RecordingCache()


class TestRefresher(RefresherContract):
    @pytest.fixture
    def refresher(self):
        caches["default"].clear()
        return ImmediateRefresher()


def test_the_plugin_is_there(memory_logs):
    check_aggregate(Account)
    assert memory_logs(Account) is Account.logs
"""
BROKEN = """
import pytest

from eventlogs.testing import MemoryStore
from eventlogs.testing.contracts.stores import StoreContract


class Miscounting(MemoryStore):
    def version(self, log_id):
        return super().version(log_id) + 1


class TestMiscounting(StoreContract):
    @pytest.fixture
    def store(self):
        return Miscounting()
"""


def files_of_the_package() -> set[str]:
    """Return the files that the wheel must contain: all of the package, as paths inside it."""
    return {
        path.relative_to(ROOT).as_posix()
        for path in PACKAGE.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def check_wheel(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        carried = {name for name in archive.namelist() if ".dist-info/" not in name}
    expected = files_of_the_package()
    if missing := sorted(expected - carried):
        sys.exit(f"The wheel lacks {', '.join(missing)}: see package_data in setup.cfg.")
    if extra := sorted(carried - expected):
        sys.exit(f"The wheel carries {', '.join(extra)}: see packages.find in setup.cfg.")
    for needed in ("eventlogs/py.typed", "eventlogs/migrations/__init__.py"):
        if needed not in carried:
            sys.exit(f"The wheel lacks {needed}.")


def check_sdist(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        carried = {name.partition("/")[2] for name in archive.getnames()}
    needed = {"tox.ini", "toxfile.py", "manage.py", "Makefile", "CHANGELOG.md", "README.md"}
    needed |= {f"tests/{path.name}" for path in ROOT.glob("tests/*.py")}
    needed |= {
        path.relative_to(ROOT).as_posix()
        for path in ROOT.glob("docs/**/*")
        # These folders are made by a build of the site.
        if path.is_file() and path.parent.name not in ("project", "reference", "__pycache__")
    }
    needed |= {".readthedocs.yaml", "llms.txt"}
    needed |= {path.relative_to(ROOT).as_posix() for path in ROOT.glob("example_project/**/*.py")}
    if missing := sorted(needed - carried):
        sys.exit(f"The sdist lacks {', '.join(missing)}: see MANIFEST.in.")


def check_installed(wheel: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="eventlogs-package-") as directory:
        environment = Path(directory, "environment")
        venv.create(environment, with_pip=True)
        python = str(environment / ("Scripts" if os.name == "nt" else "bin") / "python")
        install = [python, "-m", "pip", "install", "--quiet"]
        subprocess.run([*install, str(wheel)], check=True)
        subprocess.run([python, "-W", "error", "-c", SMOKE_TEST], check=True, cwd=directory)
        subprocess.run([*install, f"{wheel}[testing]", "pytest", "pytest-django"], check=True)
        check_contracts(python, Path(directory))


def check_contracts(python: str, directory: Path) -> None:
    """Run the contract suites of the wheel as the tests of a project, by pytest's plugins."""
    files = {"settings.py": SETTINGS, "test_contracts.py": CONTRACTS, "test_broken.py": BROKEN}
    for name, text in files.items():
        (directory / name).write_text(text, encoding="utf-8")
    pytest = [python, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider"]
    pytest += ["--ds", "settings", "-o", "pythonpath=.", "--rootdir", "."]
    subprocess.run([*pytest, "test_contracts.py"], check=True, cwd=directory)
    broken = subprocess.run(
        [*pytest, "test_broken.py"], check=False, cwd=directory, capture_output=True, text=True
    )
    # Without pytest's rewriting of assertions, a failure would not say what was compared.
    if broken.returncode != 1 or "where 1 = " not in broken.stdout:
        sys.exit(f"A store that is broken on purpose passed, or failed silently:\n{broken.stdout}")


def main(directory: Path) -> None:
    [wheel] = directory.glob("*.whl")
    [sdist] = directory.glob("*.tar.gz")
    check_wheel(wheel)
    check_sdist(sdist)
    check_installed(wheel)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
