"""Labelled texts for models with a task head."""
from . import data # noqa: F401 registers its kind of data
