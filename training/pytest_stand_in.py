"""What imported tests use of pytest, small enough to stand in front of them: no package is needed in the
sandbox.

This file's text goes into the test code of every problem that `rrtf-train import --pytest` makes, so it
stands alone and holds no assert statement (the judge counts those as tests).
It has no annotations: they would only lengthen every problem.
"""

# mypy: allow-untyped-defs, allow-untyped-calls

import math
import re
import unittest


def finishes(test, *arguments, **named):
    """True, if the test raises nothing."""
    test(*arguments, **named)
    return True


def method_finishes(test_class, name, **named):
    """The same for a method of a test class, with what pytest or unittest runs around it."""
    if isinstance(test_class, type) and issubclass(test_class, unittest.TestCase):
        result = unittest.TestResult()
        test_class(name).run(result)
        for _, text in [*result.failures, *result.errors]:
            raise AssertionError(text.strip().rpartition("\n")[2])
        return not result.skipped
    instance = test_class()
    for prepare in ("setup_method", "setup"):
        if hasattr(instance, prepare):
            getattr(instance, prepare)()
            break
    getattr(instance, name)(**named)
    if hasattr(instance, "teardown_method"):
        instance.teardown_method()
    return True


class Raises:
    """`pytest.raises` as a context manager."""

    def __init__(self, expected, match=None):
        self.expected = expected
        self.match = match
        self.value = None
        self.type = None

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        if kind is None:
            raise AssertionError(f"did not raise {self.expected}")
        if not issubclass(kind, self.expected):
            return False
        self.type, self.value = kind, error
        if self.match is not None and not re.search(self.match, str(error)):
            raise AssertionError(f"{str(error)!r} does not match {self.match!r}")
        return True


class Approx:
    """`pytest.approx` of numbers, and of lists, tuples and dictionaries of them: relative 1e-6 or absolute
    1e-12, whichever allows more, where nothing else is said."""

    __hash__ = None  # type: ignore[assignment]  # as pytest's own

    def __init__(self, expected, rel=None, abs=None, nan_ok=False):
        self.expected = expected
        self.rel, self.abs, self.nan_ok = rel, abs, nan_ok

    def __repr__(self):
        return f"approx({self.expected!r})"

    def __eq__(self, other):
        return self._near(other, self.expected)

    def _near(self, got, expected):
        if isinstance(expected, dict):
            same = isinstance(got, dict) and got.keys() == expected.keys()
            return same and all(self._near(got[key], each) for key, each in expected.items())
        if isinstance(expected, (list, tuple)):
            same = isinstance(got, (list, tuple)) and len(got) == len(expected)
            return same and all(map(self._near, got, expected))
        numbers = (int, float, complex)
        if got == expected or not isinstance(expected, numbers) or not isinstance(got, numbers):
            return got == expected
        return self._close(abs(got - expected), abs(expected), abs(got))

    def _close(self, apart, expected, got):
        if math.isnan(apart) or math.isinf(expected) or math.isinf(got):
            return self.nan_ok and math.isnan(expected) and math.isnan(got)
        absolute = 1e-12 if self.abs is None else self.abs
        # pytest: an absolute tolerance alone leaves no relative one.
        relative = (1e-6 if self.abs is None else 0.0) if self.rel is None else self.rel
        return apart <= max(absolute, relative * expected)


class pytest:  # noqa: N801  # the name that the tests use
    """The part of pytest that imported tests may use (training/pytest_code.py, STAND_IN_HAS)."""

    approx = Approx

    @staticmethod
    def raises(expected, *called, match=None, **named):
        context = Raises(expected, match)
        if not called:
            return context
        with context:
            called[0](*called[1:], **named)
        return context

    @staticmethod
    def fail(reason=""):
        raise AssertionError(reason)
