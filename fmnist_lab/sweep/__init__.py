"""Many jobs from one command: the plan, the driver, the screen, the launchers."""
