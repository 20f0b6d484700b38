"""The door to runs that exist, `python -m fmnist_lab.runs VERB`: a module a verb."""
