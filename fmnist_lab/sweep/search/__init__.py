"""A search for hyperparameters: trials chosen one by one, paused, promoted, and resumed.

`options` and `space` say what is asked for, `trials` remembers everything in a log, `sampler`
chooses the next values and `rungs` the trials that go on. `source` hands both to a launcher, and
`control` connects the search with the driver of all sweeps.
"""
