"""Diffusers' own pipeline test classes through the doors."""
