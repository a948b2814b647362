"""What a trainer imports: a synchronous client of the Preceptor selection service.

    from preceptor import RunSpec, SelectionClient

The errors are in `preceptor.errors`, the loader for torch in `preceptor.torch`. Importing this package loads neither
torch nor ray.
"""

from preceptor.answers import PushedWeights, Remembered, RunCost, RunStatus, Sampled, Scores, Selection, Timings
from preceptor.channel import Tls
from preceptor.client import Run, SelectionClient
from preceptor.co_training import CoTraining
from preceptor.errors import PreceptorError
from preceptor.reported_metrics import MetricSeries
from preceptor.runs import MemoryBank, RunSpec

__all__ = [
    "CoTraining",
    "MemoryBank",
    "MetricSeries",
    "PreceptorError",
    "PushedWeights",
    "Remembered",
    "Run",
    "RunCost",
    "RunSpec",
    "RunStatus",
    "Sampled",
    "Scores",
    "Selection",
    "SelectionClient",
    "Timings",
    "Tls",
]
