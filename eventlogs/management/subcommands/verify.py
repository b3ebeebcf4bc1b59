"""``eventlogs verify``: check logs, events, keys and unique values; caches and rows on request."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from django.core.management.base import CommandParser

from eventlogs.ids import LogId
from eventlogs.management import arguments
from eventlogs.management.mistakes import findings, mistake
from eventlogs.management.output import Output, clean
from eventlogs.operations.chaining import ChainVerifier
from eventlogs.operations.commands import command
from eventlogs.operations.triggers import TriggerVerifier
from eventlogs.operations.verification import (
    CacheVerifier,
    Finding,
    ProjectionVerifier,
    Scope,
    Verifier,
    differences,
    verify,
)
from eventlogs.projections.verify import Run
from eventlogs.utils.words import counted

HELP = "Check logs, events, keys and unique values. Exit code 1: findings."

SHOWN = 100  # findings
TOLD_EVERY = 1_000_000  # events, with --verbosity 2


def add_arguments(parser: CommandParser) -> None:
    """Add the scope."""
    arguments.add_log_types(parser)
    parser.add_argument(
        "--after",
        type=arguments.log_id,
        metavar="LOG",
        help="Skip the logs up to this one, which an earlier run has checked.",
    )
    arguments.add_flags(
        parser,
        no_decode="Do not decode events, nor check unique values: faster, and needs no classes.",
        caches="Also replay every log that has a cached reduction, and compare.",
        chain="Check only chained logs against their digests, and the triggers of PostgreSQL.",
        projections="Also replay logs and compare the rows of read models.",
        repair="With --projections: repair rows that differ.",
    )
    text = "With --projections: check N random logs of each. By default, all."
    arguments.add_number(parser, "--sample", text=text)
    text = f"Show N findings ({SHOWN} by default); all are counted."
    arguments.add_number(parser, "--limit", default=SHOWN, text=text)


def run(
    out: Output,
    *,
    using: str,
    log_type: list[str],
    after: LogId | None,
    no_decode: bool,
    caches: bool,
    projections: bool,
    chain: bool,
    sample: int | None,
    repair: bool,
    limit: int,
    verbosity: int,
    **options: Any,
) -> None:
    """Write findings as they are found; raise CommandError with exit code 1 if there were any."""
    if (repair or sample is not None) and not projections:
        raise mistake("--sample and --repair need --projections.")
    if chain and (no_decode or caches or projections):
        raise mistake("--chain checks chains and triggers alone: leave the other options out.")
    also: list[Verifier] = [CacheVerifier()] if caches else []
    chains = ChainVerifier()
    found: Counter[str] = Counter()
    looked_at = 0

    def show(finding: Finding) -> None:
        found[finding.check] += 1
        if found.total() > limit:
            return
        if out.as_json:
            out.record(asdict(finding))
            return
        place = finding.subject
        if finding.index is not None:
            place += f" event {finding.index}"
        check = out.style.ERROR(f"{finding.check:<11}")
        out.line(f"{check}  {clean(place)}: {clean(finding.message)}")

    with out.progress("Verifying", unit="events") as progress:

        def tell(count: int) -> None:
            nonlocal looked_at
            before, looked_at = looked_at, looked_at + count
            progress.advance(count)
            if verbosity > 1 and before // TOLD_EVERY != looked_at // TOLD_EVERY:
                out.note(f"{counted(looked_at, 'event')}; --after {scope.reached} resumes here")

        scope = Scope(using, after, log_type, not no_decode, tell)
        try:
            if chain:
                for verifier in (TriggerVerifier(), chains):
                    for finding in verifier.verify(scope):
                        show(finding)
            else:
                for finding in verify(scope, also):
                    show(finding)
        except KeyboardInterrupt:
            if scope.reached is not None:
                out.note(f"\nTo resume: --after {scope.reached}")
            raise
    figures: dict[str, dict[str, int]] = {}
    if projections:
        figures = _compare(out, scope, ProjectionVerifier(sample=sample, repair=repair), show)
    if out.as_json:
        summary = {"events": looked_at, "findings": found.total(), "checks": dict(found)}
        if chain:
            summary |= {"chained": chains.chained, "unchained": chains.unchained}
        out.record({**summary, "projections": figures} if projections else summary)
    checked = counted(looked_at, "event was checked", "events were checked")
    if chain:
        checked += f" of {counted(chains.chained, 'chained log')}"
        if chains.unchained:
            checked += f" and {counted(chains.unchained, 'log')} without a chain"
    if found:
        each = ", ".join(f"{count:,} of {check}" for check, count in found.most_common())
        raise findings(f"{checked}, with findings: {each}.")
    if not out.as_json:
        out.line(f"{checked}. No findings.", out.style.SUCCESS)


def _compare(
    out: Output, scope: Scope, verifier: ProjectionVerifier, show: Callable[[Finding], None]
) -> dict[str, dict[str, int]]:
    """Compare the rows of all read models; report what was compared and what was not."""
    figures = {}
    for each in verifier.read_models(scope):
        if isinstance(each, Finding):
            show(each)
            continue
        with out.progress(each.projection.name, total=each.total(), unit="logs") as progress:
            for finding in differences(each, progress.advance):
                show(finding)
        figures[each.projection.name] = {
            "logs": each.checked,
            "held": each.held,
            "failed": each.failed,
            "differences": each.differences,
        }
        if not out.as_json:
            out.line(_told(each, scope.using))
    return figures


def _told(each: Run, using: str) -> str:
    compared = each.checked - each.failed
    words = "log was compared with its row", "logs were compared with their rows"
    text = f"{each.projection.name}: {counted(compared, *words)}"
    if each.held:
        text += (
            f", {each.held:,} of them only up to an event that is parked or waits "
            f"({command(f'parked {each.projection.name}', using=using)})"
        )
    if each.failed:
        text += f"; {each.failed:,} could not be"
    return f"{text}."
