"""Tokens as arrays on disk."""
from . import data # noqa: F401 registers its kind of data
