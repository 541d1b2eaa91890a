"""Reading answers, and scoring them: numbers, letters, texts, and metrics of a whole set."""
