"""The machine beneath: files that survive a power cut, signals, streams, caches, the process."""
