"""Models on disk and on the Hub: verified folders, names, cards."""
