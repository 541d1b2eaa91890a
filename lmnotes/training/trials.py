def search_rate(*a, **k): raise NotImplementedError
