"""Python programs that tests start, their output and their exit codes."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from tests.processes.waiting import PATIENCE, stories, witnesses

ROOT = Path(__file__).resolve().parents[2]


class Program(subprocess.Popen[bytes]):
    """
    A Python program that runs beside the test; a context manager that leaves none behind.

    Its standard error goes to a file, so that writing to it never blocks.
    """

    def __init__(
        self,
        *arguments: str | Path,
        environ: Mapping[str, str | None] | None = None,
        cwd: Path | str = ROOT,
        **options: Any,
    ) -> None:
        """
        Start ``python *arguments``.

        ``environ`` adds variables to ours, and removes those that are None; ``options`` are
        those of Popen.
        """
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (closed by close())
        self._read = b""
        self._command = " ".join(map(str, arguments))
        super().__init__(
            [sys.executable, *map(str, arguments)],
            bufsize=0,
            stdin=options.pop("stdin", subprocess.DEVNULL),
            stdout=options.pop("stdout", subprocess.PIPE),
            stderr=options.pop("stderr", self._errors),
            cwd=cwd,
            env={
                name: value
                for name, value in {**os.environ, **(environ or {})}.items()
                if value is not None
            },
            **options,
        )
        witnesses.append(self.story)

    def __exit__(self, *exc_info: Any) -> None:
        self.close()

    def close(self) -> None:
        """End the program, and release its resources."""
        if self.story in witnesses:
            witnesses.remove(self.story)
        self.kill()
        super().__exit__(None, None, None)
        self._errors.close()

    @property
    def error_text(self) -> str:
        """The output on standard error until now."""
        # Not read through the file: its position is shared with the program.
        size = os.fstat(self._errors.fileno()).st_size
        return os.pread(self._errors.fileno(), size, 0).decode(errors="replace")

    def line(self, patience: float = PATIENCE) -> str:
        """Wait for the next line of its standard output; "" where there is none to come."""
        assert self.stdout is not None
        end = time.monotonic() + patience
        while b"\n" not in self._read:
            if not select.select([self.stdout], [], [], max(0.0, end - time.monotonic()))[0]:
                raise AssertionError(stories(f"no line for {patience} s from {self._command}"))
            more = os.read(self.stdout.fileno(), 65_536)
            if not more:
                break
            self._read += more
        line, _, self._read = self._read.partition(b"\n")
        return line.decode()

    def write_line(self, text: str) -> None:
        """Write a line to its standard input, which is a pipe."""
        assert self.stdin is not None
        self.stdin.write(text.encode() + b"\n")

    def stop_reading(self) -> None:
        """Close our end of its standard output, as a reader that stops reading does."""
        assert self.stdout is not None
        self.stdout.close()
        self.stdout = None

    def ended(self, *, code: int | None = 0, patience: float = PATIENCE) -> str:
        """
        Wait for its end, and return the rest of its standard output.

        Fail if it does not end with this exit code; None accepts any.
        """
        try:
            out, _ = self.communicate(timeout=patience)
        except subprocess.TimeoutExpired:
            raise AssertionError(stories(f"no end of {self._command}")) from None
        if code is not None and self.returncode != code:
            raise AssertionError(stories(f"{self._command} ended with {self.returncode}"))
        return (self._read + (out or b"")).decode()

    def story(self) -> str:
        """Return its state and its output on standard error."""
        state = "at work" if self.poll() is None else f"ended with {self.returncode}"
        return f"--- {self._command} (pid {self.pid}): {state}\n{self.error_text[-4_000:]}"


def output_of(*arguments: str | Path, code: int | None = 0, **options: Any) -> str:
    """Run ``python *arguments`` until it ends with this exit code; return its output."""
    with Program(*arguments, **options) as program:
        return program.ended(code=code)
