"""What scripts/evaluate.py is made of."""
