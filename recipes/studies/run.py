"""Run a study of the paper: `python recipes/studies/run.py table9 --seeds 0,1,2`. The same as `iad-ext study`."""

import sys

from iad_ext.cli import main

if __name__ == "__main__":
    main(["study", *sys.argv[1:]])
