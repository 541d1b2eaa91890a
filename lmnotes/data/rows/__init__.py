"""Tokens of rows: prompts with targets, conversations, and the templates of prompts."""
