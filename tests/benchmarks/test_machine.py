from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.machine import CPUS, TICKS, Usage, Watch, foreign_share, runnable, usage

CPU = "cpu  {user} 0 {system} 9000 10 0 0 {steal} 0 0"
STAT = "{pid} ({name}) S {parent} 1 1 0 -1 0 0 0 0 0 {user} {system} {ended} 0 20 0 1 0 5 0 0"


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    """A /proc of three processes: 10, its child 11, and 20, whose name is hard to parse."""
    lines = [CPU.format(user=500, system=100, steal=50), "btime 1", "procs_running 4", "x 0"]
    (tmp_path / "stat").write_text("\n".join(lines))
    for pid, name, parent, user in (
        (10, "ours", 1, 100),
        (11, "child", 10, 200),
        (20, "a) b (1 2", 1, 50),
    ):
        (tmp_path / str(pid)).mkdir()
        text = STAT.format(pid=pid, name=name, parent=parent, user=user, system=5, ended=7)
        (tmp_path / str(pid) / "stat").write_text(text)
    (tmp_path / "self").mkdir()
    return tmp_path


def quiet() -> Watch:
    return Watch(load=0.1, runnable=0.0, before=0.01, foreign=[0.02, 0.03], steal=[0.0, 0.01])


def test_usage_is_read_for_all_processes(proc):
    found = usage(proc)

    assert found.busy == 600 / TICKS
    assert found.steal == 50 / TICKS
    assert found.of_each == {
        10: (1, 112 / TICKS),
        11: (10, 212 / TICKS),
        20: (1, 62 / TICKS),
    }


def test_a_family_is_a_process_and_its_descendants(proc):
    found = usage(proc)

    assert found.family(10) == {10, 11}
    assert found.family(10, 11, 20, 99) == {10, 11, 20}
    assert found.of_family(10) == 324 / TICKS


def test_runnable_processes_are_counted_without_the_one_that_counts(proc):
    assert runnable(proc) == 3


def test_a_system_without_proc_reports_no_usage(tmp_path):
    found = usage(tmp_path / "missing")

    assert (found.busy, found.steal, found.of_each) == (0, 0, {})
    assert runnable(tmp_path / "missing") == 0
    assert foreign_share(found, found, 1) == 0


def test_the_foreign_share_is_the_processor_time_of_other_processes():
    before = Usage(10.0, 100.0, 0.0, {1: (0, 40.0), 2: (1, 10.0), 3: (0, 50.0)})
    after = Usage(12.0, 100.0 + CPUS, 0.0, {1: (0, 40.5), 2: (1, 10.25), 3: (0, 99.0)})

    assert foreign_share(before, after, 1) == pytest.approx((CPUS - 0.75) / (2 * CPUS))


def test_processor_time_of_an_ended_child_is_not_foreign():
    before = Usage(10.0, 100.0, 0.0, {1: (0, 40.0), 2: (1, 10.0)})
    after = Usage(11.0, 100.5, 0.0, {1: (0, 50.5)})

    assert foreign_share(before, after, 1) == 0


def test_a_quiet_machine_gives_no_reason():
    assert quiet().reasons() == []


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"before": 0.5}, "others took 50% of the processors before it began"),
        ({"runnable": CPUS * 0.6}, "processes were runnable before it began"),
        ({"foreign": [0.0, 0.4]}, "others took 20% of the processors during the windows"),
        ({"steal": [0.08, 0.08]}, "the host took 8% of the processors"),
    ],
)
def test_a_busy_machine_is_reported(change, reason):
    busy = quiet()
    for name, value in change.items():
        setattr(busy, name, value)

    [found] = busy.reasons()

    assert reason in found


def test_a_watch_samples_the_machine_before_a_run():
    watch = Watch()

    watch.look_before(seconds=0.0, samples=2)

    assert watch.load >= 0
    assert watch.before >= 0
