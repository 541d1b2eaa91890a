"""Datasets that are read as a stream and never held in memory."""
from . import data # noqa: F401 registers its kind of data
