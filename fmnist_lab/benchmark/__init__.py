"""The door to measurements, `python -m fmnist_lab.benchmark`: a module a measurement."""
