"""What the command line offers: a module for each command, and what words on it mean."""
