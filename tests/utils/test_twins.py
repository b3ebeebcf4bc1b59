"""The helper that makes async twins of class methods."""

from __future__ import annotations

import inspect

from asgiref.sync import async_to_sync

from eventlogs.utils.twins import AsyncTwin


class Base:
    @classmethod
    def double(cls, number: int, *, more: int = 0) -> int:
        """Return a number twice."""
        return 2 * number + more

    adouble = AsyncTwin(double)


class Own(Base):
    @classmethod
    def double(cls, number: int, *, more: int = 0) -> int:
        return -number


def test_a_twin_answers_what_the_method_answers():
    assert async_to_sync(Base.adouble)(4, more=1) == 9


def test_a_twin_calls_the_method_of_the_class_that_it_is_asked_of():
    assert async_to_sync(Own.adouble)(4) == async_to_sync(Own().adouble)(4) == -4


def test_a_twin_has_the_name_of_the_method_and_its_signature():
    assert Base.adouble.__name__ == "adouble"
    assert "double" in (Base.adouble.__doc__ or "")
    assert inspect.signature(Base.adouble) == inspect.signature(Base.double)
