"""Training and measuring the models of the world of shapes; started by scripts/train_shapes.py."""
