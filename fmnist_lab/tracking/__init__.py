"""The store of runs: the only room that imports MLflow.

A `Run` writes on one thread of its own, in order, so that MLflow's import, its database and its
files cost the training nothing. MLflow is imported there, after TensorFlow.
"""

from fmnist_lab.tracking.bounds import check_yaml as check_yaml
from fmnist_lab.tracking.client import asking as asking
from fmnist_lab.tracking.events import Status as Status
from fmnist_lab.tracking.files import damage as damage
from fmnist_lab.tracking.files import damaged as damaged
from fmnist_lab.tracking.files import disown as disown
from fmnist_lab.tracking.lifecycle import start as start
from fmnist_lab.tracking.links import links as links
from fmnist_lab.tracking.listing import SweepSummary as SweepSummary
from fmnist_lab.tracking.listing import finished as finished
from fmnist_lab.tracking.listing import member_rows as member_rows
from fmnist_lab.tracking.listing import own_rows as own_rows
from fmnist_lab.tracking.listing import sweep_summaries as sweep_summaries
from fmnist_lab.tracking.modelfiles import load_model as load_model
from fmnist_lab.tracking.orphans import heal as heal
from fmnist_lab.tracking.query import FOLDER_TAG as FOLDER_TAG
from fmnist_lab.tracking.query import SEARCH_TAG as SEARCH_TAG
from fmnist_lab.tracking.query import RunRecord as RunRecord
from fmnist_lab.tracking.query import RunRef as RunRef
from fmnist_lab.tracking.query import end as end
from fmnist_lab.tracking.query import exists as exists
from fmnist_lab.tracking.query import finished_runs as finished_runs
from fmnist_lab.tracking.query import known as known
from fmnist_lab.tracking.query import look_up as look_up
from fmnist_lab.tracking.query import member_tag as member_tag
from fmnist_lab.tracking.query import members_of as members_of
from fmnist_lab.tracking.query import tag as tag
from fmnist_lab.tracking.reading import facts as facts
from fmnist_lab.tracking.reading import file_names as file_names
from fmnist_lab.tracking.reading import origin as origin
from fmnist_lab.tracking.reading import read_file as read_file
from fmnist_lab.tracking.reading import read_predictions as read_predictions
from fmnist_lab.tracking.run import Run as Run
from fmnist_lab.tracking.store import DEFAULT_EXPERIMENT as DEFAULT_EXPERIMENT
from fmnist_lab.tracking.store import Store as Store
from fmnist_lab.tracking.store import experiment_name as experiment_name
from fmnist_lab.tracking.store import is_metric as is_metric
from fmnist_lab.tracking.sweeps import Progress as Progress
from fmnist_lab.tracking.sweeps import SweepRun as SweepRun
from fmnist_lab.tracking.sweeps import best_mean as best_mean
from fmnist_lab.tracking.sync import Sent as Sent
from fmnist_lab.tracking.sync import awaited as awaited
from fmnist_lab.tracking.sync import sync as sync
from fmnist_lab.tracking.tables import curves as curves
from fmnist_lab.tracking.tables import find as find
from fmnist_lab.tracking.tables import numbered as numbered
from fmnist_lab.tracking.tables import rows as rows
