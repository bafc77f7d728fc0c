"""Random input: good files, settings and environments with something changed in them, given to whatever reads them.

There are two allowed ends: success with a right value, or a `UserError` of one line, which is exit code 2. `python -m
tests.fuzz --help` says how to run it and how to make a failing case again.
"""
