"""The page in the browser of ``cdrl-fast app``."""
