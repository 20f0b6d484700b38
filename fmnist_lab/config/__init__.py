"""The settings of a job: types, bounds, names, and what the command line says of them."""

from fmnist_lab.config.files import conf_dir, options
from fmnist_lab.config.schema import Config, Tracking, sections, validate

__all__ = ["Config", "Tracking", "conf_dir", "options", "sections", "validate"]
