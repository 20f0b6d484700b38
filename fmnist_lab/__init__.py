"""Experiment-tracked research on Fashion-MNIST and the gap between seen and new images."""
