"""What a run is: the typed recipe, a file per section. Every key is a field, with its unit and its default.

Nothing here imports torch: a recipe can be read, checked and changed on a laptop that will never train it.
"""

from livetrain.configs.schema.cluster import Cluster, Topology, Workers
from livetrain.configs.schema.data import Data, Days, Negatives
from livetrain.configs.schema.export import Export, Quantization, Wandb
from livetrain.configs.schema.feature import EmbeddedFeature, Feature
from livetrain.configs.schema.follow import Follow
from livetrain.configs.schema.fusion import FUSED, Fusion
from livetrain.configs.schema.gradients import Gradients, Measured
from livetrain.configs.schema.model import FittedConfig, FittedRankerConfig, ModelConfig
from livetrain.configs.schema.optimizers import DenseOptimizer, Optimizers, Schedule, SparseOptimizer
from livetrain.configs.schema.recipe import Recipe
from livetrain.configs.schema.section import Section
from livetrain.configs.schema.table import InitialRows, Table
from livetrain.configs.schema.task import Follower, GroupTask, Task
from livetrain.configs.schema.train import CANDIDATES, SEEN, Evaluate, Train, WarmStart

__all__ = [
    "CANDIDATES",
    "FUSED",
    "SEEN",
    "Cluster",
    "Data",
    "Days",
    "DenseOptimizer",
    "EmbeddedFeature",
    "Evaluate",
    "Export",
    "Feature",
    "FittedConfig",
    "FittedRankerConfig",
    "Follow",
    "Follower",
    "Fusion",
    "Gradients",
    "Measured",
    "GroupTask",
    "InitialRows",
    "ModelConfig",
    "Negatives",
    "Optimizers",
    "Quantization",
    "Recipe",
    "Schedule",
    "Section",
    "SparseOptimizer",
    "Table",
    "Task",
    "Topology",
    "Train",
    "Wandb",
    "WarmStart",
    "Workers",
]
