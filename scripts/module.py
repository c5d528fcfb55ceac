"""`python scripts/module.py NAME ...` is `python -m NAME ...` for a module of this project. That would look in the present
directory first, where another project may have a `src`."""

import os
import runpy
import sys

if __name__ == '__main__':
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name='__main__', alter_sys=True)
