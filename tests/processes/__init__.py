"""
Processes that tests start: forked ones that run a function, and programs.

All of them end with the test that started them, even if that is killed, and none of them shares
a lock with another one that may be killed. Each wait has a limit, after which the error shows
what every process of the test has printed, and where it stands.
"""

from __future__ import annotations

from tests.processes.children import exit_of_fork
from tests.processes.crew import Crew
from tests.processes.forks import Place, Process, Processes, ProcessFailed
from tests.processes.programs import ROOT, Program, output_of
from tests.processes.stops import Stop
from tests.processes.waiting import PATIENCE, until

__all__ = [
    "PATIENCE",
    "ROOT",
    "Crew",
    "Place",
    "Process",
    "ProcessFailed",
    "Processes",
    "Program",
    "Stop",
    "exit_of_fork",
    "output_of",
    "until",
]
