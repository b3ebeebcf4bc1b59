"""The files that modules were loaded from; further tests are in test_fingerprints.py."""

from __future__ import annotations

import importlib
import os
import sys
import time
from pathlib import Path
from uuid import uuid4

import pytest

from eventlogs.utils import loaded_modules
from eventlogs.utils.loaded_modules import (
    CHANGED,
    file_of,
    is_doubtful,
    loaded,
    look,
    spec_of,
    state_of,
)
from tests.processes import output_of


@pytest.fixture
def module(tmp_path, monkeypatch):
    """The name and path of a module that has just been written, and is loaded."""
    name = f"sources_{uuid4().hex}"
    path = tmp_path / f"{name}.py"
    path.write_text("x = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.import_module(name)
    yield name, path
    del sys.modules[name]


def test_a_state_is_equal_until_the_file_is_touched(tmp_path):
    path = tmp_path / "file"
    path.write_text("one")
    before = state_of(str(path))
    assert state_of(str(path)) == before

    os.utime(path, ns=(before.modified, before.modified))
    touched = state_of(str(path))
    path.with_suffix(".new").write_text("two")
    path.with_suffix(".new").rename(path)
    os.utime(path, ns=(before.modified, before.modified))

    assert touched.modified == before.modified
    assert state_of(str(path)).inode != before.inode
    assert state_of(str(tmp_path / "nowhere")) == CHANGED


def test_a_module_that_is_older_than_the_process_is_known():
    look()

    assert loaded(__name__) == state_of(__file__)
    assert loaded("eventlogs.utils.loaded_modules") == state_of(str(loaded_modules.__file__))
    assert not is_doubtful(__name__)


def test_a_file_that_was_written_while_the_process_ran_is_doubtful(module):
    name, path = module
    look()

    assert file_of(name, spec_of(name)) == str(path)
    assert loaded(name) == CHANGED
    assert is_doubtful(name)


def test_a_module_without_a_file_has_none():
    assert file_of("builtins", spec_of("builtins")) is None
    assert spec_of("nowhere.at.all") is None
    assert loaded("builtins") == CHANGED


def test_looking_at_a_lazy_module_does_not_load_it(module, monkeypatch):
    name, _ = module
    spec = spec_of(name)
    spec.loader = importlib.util.LazyLoader(spec.loader)
    lazy = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, lazy)
    spec.loader.exec_module(lazy)

    look()

    assert spec_of(name) is spec
    assert "x" not in object.__getattribute__(lazy, "__dict__")


def test_the_process_began_before_now():
    assert 0 < time.time() - loaded_modules.BEGAN < 86_400
    assert loaded_modules.is_older_than_process(__file__)


SLOW_READ = """
import importlib
import time
from pathlib import Path
from eventlogs.utils import loaded_modules

began, read = loaded_modules.BEGAN, Path.read_text

def read_slowly(path):
    text = read(path)
    time.sleep(0.3)  # as when a busy machine gives the processor to others
    return text

Path.read_text = read_slowly
print(began - importlib.reload(loaded_modules).BEGAN)
"""


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="it is read on Linux")
def test_a_slow_read_does_not_make_the_process_look_older():
    """Files written just before the process began would otherwise count as changed."""
    assert abs(float(output_of("-c", SLOW_READ))) < 0.2
