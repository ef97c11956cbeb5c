"""Harm done on purpose, in numbers: what scripts/torture runs, and the tests with small counts.

report      what a run of any part did and found
oracle      what a store holds, told in a way that two stores can be compared by, and what was acknowledged

Each part is a module of its name with `run(seed, count, directory) -> Report`; scripts/torture looks for them by name.
"""
