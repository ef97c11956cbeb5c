"""Arguments and printing: the only package that reads the environment and speaks to the user.

May import everything below. The one rule: starting up stays light, so a command imports what it needs when it runs.
"""
