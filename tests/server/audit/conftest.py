"""Fixtures of these tests."""

from tests.fakes.passwords import cheap_passwords

__all__ = ["cheap_passwords"]
