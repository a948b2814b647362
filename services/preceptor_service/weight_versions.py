"""One committed version of weights, and the manifest, the file that tells of it."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from typing import Literal, NamedTuple

from preceptor.errors import InternalError, WeightsNotFoundError
from preceptor.quoting import brief
from preceptor_service.storage import Storage

Role = Literal["learner", "reference", "reference_fold_1"]

ROLES: tuple[Role, ...] = ("learner", "reference", "reference_fold_1")
"""Every role that weights have in a run."""

DIGEST = re.compile(r"sha256:([0-9a-f]{64})")
_MANIFEST = re.compile(r"([0-9]{8,})\.json")


@dataclass(frozen=True)
class WeightsVersion:
    """One committed version.

    Attributes:
        version: 1 for the first, then one more each.
        step: the trainer's step that the weights belong to.
        digest: `"sha256:..."` of the safetensors file.
        total_bytes: its size.
        commit_time_s: seconds since the epoch.
        optimiser_digest: of what training needs beside the weights to go on from them; only of a co-trained learner,
            and never loaded to score.
        reference_digest, reference_bytes, reference_optimiser_digest: of the reference that is trained beside it, where
            there is one.
    """

    version: int
    step: int
    digest: str
    total_bytes: int
    commit_time_s: float
    optimiser_digest: str | None = None
    reference_digest: str | None = None
    reference_bytes: int | None = None
    reference_optimiser_digest: str | None = None

    @property
    def digests(self) -> set[str]:
        """Every blob that it names."""
        named = (self.digest, self.optimiser_digest, self.reference_digest, self.reference_optimiser_digest)
        return {digest for digest in named if digest is not None}


class Place(NamedTuple):
    """Where the versions of one role of a run lie; `folder` is None where the run is not there."""

    run_id: str
    role: str
    folder: str | None


def manifest_path(folder: str, number: int) -> str:
    """Returns where the manifest of that version lies in the store."""
    return f"{folder}/{number:08d}.json"


def numbers_among(names: list[str]) -> list[int]:
    """Returns the numbers of the versions whose manifests are among `names`, sorted."""
    return sorted(int(match[1]) for name in names if (match := _MANIFEST.fullmatch(name)))


def create_manifest(storage: Storage, folder: str, version: WeightsVersion) -> bool:
    """Creates the manifest whole and durable; False where it exists already.

    Raises:
        FileNotFoundError: the life of the run is over.
    """
    # Older gateways know no optional ones.
    stored = {name: value for name, value in asdict(version).items() if value is not None}
    return storage.create(manifest_path(folder, version.version), json.dumps(stored).encode())


def read_manifest(storage: Storage, place: Place, number: int) -> WeightsVersion:
    """Returns a version.

    Raises:
        WeightsNotFoundError: it is not there any more.
        InternalError: its manifest is damaged.
    """
    run_id, role, folder = place
    try:
        version = parse_manifest(storage.read(manifest_path(folder or "", number)), number)
    except FileNotFoundError as error:
        raise WeightsNotFoundError(f"run {run_id!r} has no {role} version {number} any more") from error
    except (ValueError, TypeError) as error:
        cure = "push newer weights" if role == "learner" else "create another run, since a reference never changes"
        raise InternalError(
            f"{role} version {number} of run {run_id!r} is damaged in the store ({brief(error)}); {cure}"
        ) from error
    return version


def parse_manifest(content: bytes, number: int) -> WeightsVersion:
    """Returns the version that the content of a manifest describes.

    Raises:
        ValueError, TypeError: it describes none, or one that is not `number`.
    """
    version = WeightsVersion(**json.loads(content))
    if version.version != number or not all(map(DIGEST.fullmatch, version.digests)):
        raise ValueError(f"it describes version {version.version} with digest {version.digest}")
    return version
