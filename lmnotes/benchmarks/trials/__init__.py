"Scores of many small models, and comparisons drawn from them by the thousand"
