"""`python -m iad_ext`: the same as `iad-ext`."""

from iad_ext.cli import main

if __name__ == "__main__":
    main()
