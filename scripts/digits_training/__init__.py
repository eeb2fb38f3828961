"""Training and using the models of real digits; started by scripts/train_digits.py."""
