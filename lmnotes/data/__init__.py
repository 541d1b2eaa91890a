"""Rows, documents, tokens and batches: everything between a source of text and a model."""
from ..core import hide_broken_torchvision
hide_broken_torchvision()
