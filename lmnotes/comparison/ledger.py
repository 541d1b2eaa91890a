def note_comparison(*a, **k): pass
