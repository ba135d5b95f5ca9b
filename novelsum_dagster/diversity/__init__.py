"""Measures of the diversity of a set of samples: NovelSum, density, and the measures that it is compared with."""

from novelsum_dagster.diversity.clusters import Partition, cluster_inertia, partition_entropy
from novelsum_dagster.diversity.dcscore import dcscore
from novelsum_dagster.diversity.density import Density, density
from novelsum_dagster.diversity.distances import distsum_l2, facility_location, knn_distance
from novelsum_dagster.diversity.g_vendi import gradient_features
from novelsum_dagster.diversity.lexical import ttr, vocd_d
from novelsum_dagster.diversity.measured import Measured
from novelsum_dagster.diversity.moments import Moments, distsum_cosine, log_determinant, radius, vendi_score
from novelsum_dagster.diversity.novelsum import NovelSumResult, Powers, novelsum, novelsum_grid

__all__ = [
    "Density",
    "Measured",
    "Moments",
    "NovelSumResult",
    "Partition",
    "Powers",
    "cluster_inertia",
    "dcscore",
    "density",
    "distsum_cosine",
    "distsum_l2",
    "facility_location",
    "gradient_features",
    "knn_distance",
    "log_determinant",
    "novelsum",
    "novelsum_grid",
    "partition_entropy",
    "radius",
    "ttr",
    "vendi_score",
    "vocd_d",
]
