"""The command ``steer``: the one place that puts pipeline, search and reward together."""
