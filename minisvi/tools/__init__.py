"""Small tools that know nothing of inference: records, checks of arguments, noise, and arrays on
many devices.
"""
