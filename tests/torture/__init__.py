"""Harm done on purpose, in numbers: what scripts/torture runs, and the tests with small counts.

report      what a run of any part did and found
oracle      what a store holds, told in a way that two stores can be compared by
shim.c, tracing
            processes whose n-th call that concerns the store is killed, fails or is cut short
scenarios, scenarios_mount, scenarios_store
            what is interrupted: a store, and steps that can be taken again
rig         a scenario played, with a daemon where it needs one
points      every call of every scenario, numbered
losing      what a failed fsync may have lost
kill, faults
            the parts made of these; the others are beside them

Each part is a module of its name with `run(seed, count, directory) -> Report`; scripts/torture looks for them by name.
"""
