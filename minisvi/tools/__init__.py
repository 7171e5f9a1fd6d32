"""Small tools that know nothing of inference.

They are records, names of leaves, checks of arguments and data, noise and keys, batches of a
function, and arrays on many devices.
"""
