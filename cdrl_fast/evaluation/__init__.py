"""Samples against data: judged, swept over options, step plans tuned."""
