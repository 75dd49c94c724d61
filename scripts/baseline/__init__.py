"""The sections of `gpu_baseline.py`; each measures one thing for later work to be held against."""
