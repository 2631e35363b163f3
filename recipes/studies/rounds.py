"""A study on a GPU machine without a network, lent for minutes at a time: prepare, run, merge. See docs/studies.md."""

import sys

from iad_ext.studies.rounds import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
