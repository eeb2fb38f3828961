"""Tiny pipelines with random weights, built from configurations alone: nothing is downloaded."""
