"""``eventlogs attest FILE…``: prove the history by its seals."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from django.core.management.base import CommandParser

from eventlogs.ids import LogId
from eventlogs.management import arguments
from eventlogs.management.mistakes import findings, mistake
from eventlogs.management.output import Output, clean
from eventlogs.seals.attesting import PROVED, Attestation, Source, Verdict, attest
from eventlogs.seals.files import read_leaves, read_seals
from eventlogs.seals.keys import Trusted
from eventlogs.seals.leaves import Leaf
from eventlogs.seals.proofs import proof_document
from eventlogs.seals.sources import DatabaseSource, ExportSource
from eventlogs.utils.times import time_text
from eventlogs.utils.words import counted

HELP = "Prove by seals that no event was changed, removed or put in. Exit code 1: it is not proved."

STDOUT = "-"
SHOWN = 100  # findings


def add_arguments(parser: CommandParser) -> None:
    """Add the seals, and the history to prove."""
    parser.add_argument("files", nargs="+", metavar="FILE", help="A file of `eventlogs seal`.")
    parser.add_argument(
        "--export",
        action="append",
        default=[],
        metavar="FILE",
        help="Prove this export instead of the database. Repeat it for exports that follow each "
        "other.",
    )
    parser.add_argument(
        "--archive",
        action="append",
        default=[],
        metavar="FILE",
        help="With --export: the file of an archive, whose logs the exports lack. Repeat it.",
    )
    parser.add_argument(
        "--leaves",
        metavar="FILE",
        help="The leaves of one of the seals: they show which logs differ, also after logs were "
        "erased.",
    )
    parser.add_argument(
        "--public-key",
        action="append",
        default=[],
        metavar="KEY",
        help='Trust this key only, in base64. By default, those of EVENTLOGS["SEAL_KEY"] and '
        '["SEAL_PUBLIC_KEYS"].',
    )
    parser.add_argument(
        "--log",
        type=arguments.log_id,
        metavar="LOG",
        help="With --proof: the log to prove, by the last seal.",
    )
    parser.add_argument(
        "--proof",
        metavar="FILE",
        help="Write a proof of that log to this new file, or - for the standard output.",
    )


def run(
    out: Output,
    *,
    using: str,
    files: list[str],
    export: list[str],
    archive: list[str],
    leaves: str | None,
    public_key: list[str],
    log: LogId | None,
    proof: str | None,
    **options: Any,
) -> None:
    """Attest; raise CommandError with exit code 1 if something is not proved."""
    if archive and not export:
        raise mistake("--archive goes with --export. The archives of a database are found by it.")
    if (log is None) != (proof is None):
        raise mistake("--log and --proof go together.")
    if proof not in (None, STDOUT) and Path(str(proof)).exists():
        raise mistake(f"{proof} already exists. Choose another name.")
    try:
        trusted = Trusted(public_key)
    except ValueError as error:
        raise mistake(f"--public-key: {error}") from error
    get_leaves: Callable[[], Iterable[Leaf]] | None = None
    if leaves is not None:
        get_leaves = partial(read_leaves, Path(leaves))
    try:
        seals = [seal for file in files for seal in read_seals(Path(file))]
        with out.progress("Attesting", unit="events") as progress:
            source: Source = (
                ExportSource(
                    [Path(each) for each in export],
                    archives=[Path(each) for each in archive],
                    tell=progress.advance,
                )
                if export
                else DatabaseSource(using, tell=progress.advance)
            )
            found = attest(seals, source, trusted, leaves=get_leaves, log=log)
        write_proof(out, found, log, proof)
    except OSError as error:
        raise mistake(f"{error.filename}: {error.strerror or error}.") from error
    report(out, found, to_stdout=proof == STDOUT)
    if not found.is_proved:
        proved = sum(each.state == PROVED for each in found.verdicts)
        raise findings(
            f"{proved:,} of {counted(len(found.verdicts), 'seal')} proved, "
            f"{counted(len(found.findings), 'finding')}."
        )


def write_proof(out: Output, found: Attestation, log: LogId | None, proof: str | None) -> None:
    """Write the proof, if there is one."""
    if log is None or proof is None or not found.is_proved:
        return
    if found.proof is None:
        raise mistake(f"{log} is not under the last seal: it is newer, or has no chain.")
    text = json.dumps(proof_document(found.proof), indent=2)
    if proof == STDOUT:
        out.line(text)
    else:
        with Path(proof).open("x", encoding="utf-8") as stream:
            stream.write(text + "\n")


def report(out: Output, found: Attestation, *, to_stdout: bool) -> None:
    """Write the verdicts and findings."""
    if to_stdout and found.is_proved:
        return  # the proof is the output
    if out.as_json:
        out.document(
            {
                "proved": found.is_proved,
                "logs": found.logs,
                "events": found.events,
                "seals": [
                    {
                        "position": each.seal.position,
                        "time": each.seal.time,
                        "state": each.state,
                        "reason": each.reason,
                        "notes": each.notes,
                    }
                    for each in found.verdicts
                ],
                "findings": [asdict(each) for each in found.findings],
            }
        )
        return
    for each in found.verdicts:
        report_verdict(out, each)
    for finding in found.findings[:SHOWN]:
        place = str(finding.log_id)
        if finding.index is not None:
            place += f" event {finding.index}"
        out.line(f"{clean(place)}: {clean(finding.message)}", out.style.WARNING)
    more = len(found.findings) - SHOWN
    if more > 0:
        out.line(f"… and {counted(more, 'finding')} more.")


def report_verdict(out: Output, verdict: Verdict) -> None:
    """Write the verdict on one seal."""
    seal = verdict.seal
    is_proved = verdict.state == PROVED
    paint = out.style.SUCCESS if is_proved else out.style.ERROR
    text = f"Seal of {time_text(seal.moment)}, position {seal.position:,}: "
    if is_proved:
        text += f"proved, {counted(seal.logs, 'log')} with {counted(seal.events, 'event')}."
    else:
        text += f"{verdict.state.upper()}: {verdict.reason}."
    out.paragraph(text, paint)
    for note in verdict.notes:
        out.paragraph(f"{note[:1].upper()}{note[1:]}.", indent=4)
