"Held-out data, and scores of a model on it that pair by item"
