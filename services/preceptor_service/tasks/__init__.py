"""Tasks: what the examples of a run are, and which loss per example scores them.

The gateway reads the columns, the scorers compute the losses. Importing this needs no torch.
"""

from preceptor_service.tasks.registry import TASKS, count_flops, run_columns, task_named
from preceptor_service.tasks.task import Columns, GradientTask, Task

__all__ = ["TASKS", "Columns", "GradientTask", "Task", "count_flops", "run_columns", "task_named"]
