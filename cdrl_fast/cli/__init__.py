"""The command line: one dataclass per command, and `main`, which runs them.

A command's fields are its options. Its `run` imports what it needs: torch takes longer to load than
all else, and neither help nor completion nor a wrong argument needs it.
"""
