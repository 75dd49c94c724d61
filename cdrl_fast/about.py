"""`python -m cdrl_fast.about` prints what `cdrl_fast.about()` finds."""

from cdrl_fast.environment import about

if __name__ == "__main__":
    print(about())
