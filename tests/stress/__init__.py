"""Many programs on one store at once, and some of them killed: what scripts/stress runs, and the tests for some seconds.

settings    what one run is: where, how long, which views
mail        messages that say themselves whether they are whole
ledger      what was acknowledged and what was taken away, kept outside of the store
tally       what was done, how long it took, what went wrong
actor       the life of a process that works on the store until the deadline; `python -m tests.stress.actor`
readers, filing, bringing, ordering, watching
            what these processes do
commands    running `mailfs`, and what a mount says of itself
stage       starting, killing and ending them all
judge       the end: is the store what the ledger says, and does the kernel show what the store holds?
run         one run from the first message to the report
"""
