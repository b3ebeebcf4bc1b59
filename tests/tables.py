"""The base of the models that tests make tables for, which are in no installed app."""

from __future__ import annotations

from typing import ClassVar, Self

from django.db import models


class Table(models.Model):
    """A model whose manager type checkers know: Django's plugin adds it to those of apps only."""

    objects: ClassVar[models.Manager[Self]] = models.Manager()

    class Meta:
        abstract = True

    def __str__(self) -> str:
        return str(self.pk)
