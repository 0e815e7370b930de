"""With this folder on PYTHONPATH every process of a sweep has the toy network in place of the U-Net.

A worker reads a config, not the Python file that made it, so that a config file cannot put it there.
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2]))
from training import toy

toy.get_config()
