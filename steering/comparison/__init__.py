"""Samplers compared at equal budgets: their sizes, results, statistics and one page that shows them."""
