"""The page in the browser: `cdrl-fast app`."""
