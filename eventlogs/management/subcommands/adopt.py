"""``eventlogs adopt MODEL``: make logs of the rows of a live table."""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from django.utils.module_loading import autodiscover_modules

from eventlogs.aggregates import Aggregate, aggregates
from eventlogs.exceptions import AdoptionFailed
from eventlogs.management import arguments
from eventlogs.management.mistakes import findings, mistake
from eventlogs.management.output import Output
from eventlogs.operations.adoption.declarations import (
    Adoption,
    adoption_by,
    adoptions_of,
    imported,
    model_of,
)
from eventlogs.operations.adoption.running import BATCH, Adopted
from eventlogs.utils.names import dotted
from eventlogs.utils.words import counted

HELP = "Make a log of each row of a table that has none. Run it again to resume."


def add_arguments(parser: ArgumentParser) -> None:
    """Add the model, and how its rows become events."""
    parser.add_argument("model", metavar="MODEL", help="The table's model, e.g. shop.Order.")
    parser.add_argument(
        "--with",
        dest="how",
        metavar="PATH",
        help="The dotted path of an Adoption, or of a function or method that takes a row and "
        "returns its event. By default the Adoption of the model in a module `adoptions`.",
    )
    parser.add_argument(
        "--aggregate",
        metavar="NAME",
        help="With a function: the aggregate whose events it returns.",
    )
    parser.add_argument(
        "--time",
        metavar="FIELD",
        help="With a function: the field with the times of the rows. By default the one "
        "with auto_now_add.",
    )
    arguments.add_number(
        parser,
        "--batch-size",
        text=f"Rows that are locked and adopted at once ({BATCH} by default).",
        default=BATCH,
    )
    arguments.add_flags(parser, dry_run="Store nothing; say what would be done, and what fails.")


def run(
    out: Output,
    *,
    using: str,
    model: str,
    how: str | None,
    aggregate: str | None,
    time: str | None,
    batch_size: int,
    dry_run: bool,
    **options: Any,
) -> None:
    """Adopt the rows, and report how many logs were made."""
    autodiscover_modules("adoptions")
    adoption = choose(model, how, aggregate, time)
    total = adoption.model_class()._base_manager.count() if out.room() is not None else None
    done = 0
    try:
        with out.progress("Adopting", total=total, unit="rows") as progress:

            def tell(rows: int) -> None:
                nonlocal done
                done += rows
                progress.advance(rows)

            found = adoption.adopt(using=using, dry_run=dry_run, batch_size=batch_size, tell=tell)
    except AdoptionFailed as error:
        raise mistake(f"{error} {counted(done, 'row')} before it were done.") from error
    except ValueError as error:
        raise mistake(str(error)) from error
    except KeyboardInterrupt:
        out.note(f"\n{counted(done, 'row')} are done. Run the same command again to resume.")
        raise
    report(out, found, dry_run=dry_run)


def report(out: Output, found: Adopted, *, dry_run: bool) -> None:
    """Write what was adopted; problems of a dry run are findings."""
    if out.as_json:
        out.document(
            {
                "logs": found.logs,
                "events": found.events,
                "present": found.present,
                "passed_over": found.passed_over,
                "dry_run": dry_run,
                "problems": list(found.problems),
            }
        )
    else:
        would = "would be made" if dry_run else "made"
        out.line(
            f"{counted(found.logs, 'log')} {would} of {counted(found.events, 'event')}; "
            f"{counted(found.present, 'row')} had a log, {found.passed_over:,} passed over.",
            out.style.SUCCESS,
        )
        for each in found.problems:
            out.paragraph(each)
    if found.problems:
        raise findings(
            f"{counted(len(found.problems), 'row')} cannot be adopted (at most 20 are counted)."
        )


def choose(model: str, how: str | None, aggregate: str | None, time: str | None) -> type[Adoption]:
    """Return the adoption that a command line names; raise CommandError for one that is unclear."""
    cls = model_of(model)
    if how is None:
        if aggregate or time:
            raise mistake("--aggregate and --time need a function. Name it by --with.")
        declared = adoptions_of(cls)
        names = ", ".join(dotted(each) for each in declared)
        if not declared:
            raise mistake(
                f"No Adoption is declared for {cls._meta.label}. Declare one in a module "
                f"`adoptions` of an app, or name a function of a row by --with."
            )
        if len(declared) > 1:
            raise mistake(f"{cls._meta.label} has several adoptions. Choose by --with: {names}.")
        return declared[0]
    found = imported(how)
    if isinstance(found, type) and issubclass(found, Adoption):
        if aggregate or time:
            raise mistake(f"--aggregate and --time are not for {how}: an Adoption declares both.")
        if found.model_class() is not cls:
            raise mistake(f"{how} adopts {found.model_class()._meta.label}, not {model}.")
        return found
    return adoption_by(found, cls, aggregate=aggregate_named(aggregate), time=time)


def aggregate_named(name: str | None) -> type[Aggregate] | None:
    """Return the aggregate of a name; raise CommandError for an unknown one."""
    if name is None:
        return None
    chosen = [each for each in aggregates if name in (each.__qualname__, dotted(each))]
    if len(chosen) != 1:
        known = ", ".join(sorted(dotted(each) for each in aggregates)) or "none"
        raise mistake(f"None or several aggregates have the name {name!r}. Aggregates: {known}.")
    return chosen[0]
