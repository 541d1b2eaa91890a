"Benches of parts of a training step"
