"""Trains a small CNN on the handwritten digits that the service at localhost:7600 (`preceptor serve`) selects.

`PRECEPTOR_TARGET` names another service, `PRECEPTOR_TLS_CA` the file of its authority, `PRECEPTOR_TOKEN_FILE` that of
our token.
"""

import os
import uuid
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from preceptor import CoTraining, RunSpec, SelectionClient, Tls
from preceptor.torch import SelectingLoader
from preceptor_service.models import ArchitectureRegistry

target, run_id = os.environ.get("PRECEPTOR_TARGET", "localhost:7600"), f"quickstart-{uuid.uuid4().hex[:8]}"
ca, token_file = os.environ.get("PRECEPTOR_TLS_CA"), os.environ.get("PRECEPTOR_TOKEN_FILE")
tls, token = Tls(Path(ca).read_bytes()) if ca else None, Path(token_file).read_text().strip() if token_file else None
config = {"in_channels": 1, "image_size": 8, "num_classes": 10, "width": 16}
digits = load_digits()
images, labels = torch.tensor(digits.images * (255 / 16)).byte().unsqueeze(1), torch.tensor(digits.target)
super_batches = DataLoader(TensorDataset(images[300:], labels[300:]), batch_size=192, shuffle=True)


def update(model: torch.nn.Module, optimiser: torch.optim.Optimizer, image: torch.Tensor, label: torch.Tensor) -> None:
    """One step of training."""
    optimiser.zero_grad()
    torch.autograd.backward(cross_entropy(model(image), label))
    optimiser.step()


learner, reference = (ArchitectureRegistry().build("small_cnn", config) for _ in range(2))
optimiser, reference_optimiser = (torch.optim.AdamW(model.parameters(), lr=3e-3) for model in (learner, reference))
for _ in range(100):
    update(reference, reference_optimiser, images[:300], labels[:300])

# [quickstart]
with SelectionClient(target, tls=tls, token=token) as client:
    online = CoTraining(learning_rate=3e-3, publish_every=8, lag=1)  # the service trains it on what it hands out
    run = client.create_run(RunSpec(run_id, model="small_cnn", model_config=config, co_training=online))
    run.push_reference(reference.state_dict())  # trained on data worth imitating
    batches = SelectingLoader(super_batches, run, sub_batch_size=64)
    for _epoch in range(40):
        for image, label in batches:  # 64 of every 192, selected while the step before trained
            update(learner, optimiser, image, label)
# [/quickstart]

print(f"accuracy {(learner(images).argmax(1) == labels).float().mean():.1%}")
