"""Many jobs from one command: the plan, the driver, the screen, the launchers."""

import sys

from fmnist_lab import Door

sys.modules[__name__].__class__ = Door
